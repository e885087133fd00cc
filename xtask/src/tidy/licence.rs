//! Evaluates a licence expression against the list of licences that are allowed.
//!
//! The grammar is SPDX's: `AND` binds tighter than `OR`, `WITH` names an exception, brackets
//! group. `/` is an old way to write `OR`.

/// Whether somebody who only has the licences of `allowed` may use what `expression` covers.
pub fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser {
        words: &words,
        allowed,
    };
    let verdict = parser.any();
    // Words left over mean that we have not understood, and then nothing is allowed.
    verdict && parser.words.is_empty()
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parser<'a> {
    fn take(&mut self, word: &str) -> bool {
        let next = self.words.first().is_some_and(|first| *first == word);
        if next {
            self.words = &self.words[1..];
        }
        next
    }

    fn any(&mut self) -> bool {
        let mut verdict = self.all();
        while self.take("OR") {
            // Not `||`: the right side must be consumed in any case.
            verdict |= self.all();
        }
        verdict
    }

    fn all(&mut self) -> bool {
        let mut verdict = self.one();
        while self.take("AND") {
            verdict &= self.one();
        }
        verdict
    }

    fn one(&mut self) -> bool {
        if self.take("(") {
            let verdict = self.any();
            return self.take(")") && verdict;
        }
        let Some((name, rest)) = self.words.split_first() else {
            return false;
        };
        self.words = rest;
        if self.take("WITH") {
            let Some((exception, rest)) = self.words.split_first() else {
                return false;
            };
            self.words = rest;
            return (self.allowed)(&format!("{name} WITH {exception}"));
        }
        (self.allowed)(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_follow_spdx_precedence() {
        let allowed = |name: &str| matches!(name, "MIT" | "BSD-3-Clause");
        for yes in [
            "MIT",
            "Apache-2.0 OR MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT AND BSD-3-Clause",
            "(GPL-3.0 OR MIT) AND BSD-3-Clause",
        ] {
            assert!(satisfied(yes, &allowed), "{yes}");
        }
        for no in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT WITH Some-exception",
            "MIT MIT",
            "(MIT",
        ] {
            assert!(!satisfied(no, &allowed), "{no}");
        }
    }
}
