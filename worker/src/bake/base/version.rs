//! Debian version numbers, ordered exactly as `dpkg --compare-versions` orders them.
//!
//! The solver and the index use it to pick the newest candidate and to check version
//! constraints. It does not judge whether a version is well formed: archives are signed, and
//! dpkg itself compares what it is given.

use std::cmp::Ordering;

/// How a dependency restricts a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `<<`
    Less,
    /// `<=` (and the old spelling `<`)
    LessOrEqual,
    /// `=`
    Equal,
    /// `>=` (and the old spelling `>`)
    GreaterOrEqual,
    /// `>>`
    Greater,
}

impl Relation {
    /// Reads an operator as control files write it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "<<" => Self::Less,
            "<=" | "<" => Self::LessOrEqual,
            "=" => Self::Equal,
            ">=" | ">" => Self::GreaterOrEqual,
            ">>" => Self::Greater,
            _ => return None,
        })
    }

    /// Says whether `version RELATION wanted` holds.
    pub fn holds(self, version: &str, wanted: &str) -> bool {
        let order = compare(version, wanted);
        match self {
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Equal => order.is_eq(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::Greater => order.is_gt(),
        }
    }

    /// The operator as control files write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Less => "<<",
            Self::LessOrEqual => "<=",
            Self::Equal => "=",
            Self::GreaterOrEqual => ">=",
            Self::Greater => ">>",
        }
    }
}

/// Compares two whole versions: epoch, then upstream version, then revision.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left_epoch, left_upstream, left_revision) = split(left);
    let (right_epoch, right_upstream, right_revision) = split(right);
    compare_digits(left_epoch.as_bytes(), right_epoch.as_bytes())
        .then_with(|| compare_part(left_upstream, right_upstream))
        .then_with(|| compare_part(left_revision, right_revision))
}

/// Splits `epoch:upstream-revision`; an absent epoch or revision is empty, which compares as 0.
fn split(version: &str) -> (&str, &str, &str) {
    let version = version.trim();
    let (epoch, rest) = version.split_once(':').unwrap_or(("", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// Compares one part: runs of non-digits by dpkg's letter order and runs of digits by value,
/// in turn, until something differs.
fn compare_part(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    while !left.is_empty() || !right.is_empty() {
        loop {
            let left_weight = weight(left.first());
            let right_weight = weight(right.first());
            if left_weight != right_weight {
                return left_weight.cmp(&right_weight);
            }
            // Equal weight 0 means that both are at a digit or at the end.
            if left_weight == 0 {
                break;
            }
            left = &left[1..];
            right = &right[1..];
        }
        let left_digits = digits(left);
        let right_digits = digits(right);
        let order = compare_digits(&left[..left_digits], &right[..right_digits]);
        if order.is_ne() {
            return order;
        }
        left = &left[left_digits..];
        right = &right[right_digits..];
    }
    Ordering::Equal
}

/// dpkg's order of characters: `~` before the end, the end and digits alike, then letters, then
/// everything else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        None => 0,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(b'~') => -1,
        Some(byte) => i32::from(*byte) + 256,
    }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Compares two runs of digits by value, however long they are.
fn compare_digits(left: &[u8], right: &[u8]) -> Ordering {
    let left = strip_zeros(left);
    let right = strip_zeros(right);
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

fn strip_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const ORDERED: &[(&str, Ordering, &str)] = &[
        ("1.0", Ordering::Equal, "1.0"),
        ("1.0", Ordering::Equal, "0:1.0"),
        ("1.0-0", Ordering::Equal, "1.0"),
        ("1.0", Ordering::Equal, "1.00"),
        ("1.0~rc1", Ordering::Less, "1.0"),
        ("1.0~~", Ordering::Less, "1.0~"),
        ("1.0~~a", Ordering::Less, "1.0~"),
        ("1.0", Ordering::Less, "1.0a"),
        ("1.0a", Ordering::Less, "1.0+"),
        ("1.0+b1", Ordering::Greater, "1.0"),
        ("1:0.1", Ordering::Greater, "99.9"),
        ("1.10", Ordering::Greater, "1.9"),
        ("1.2-3", Ordering::Less, "1.2-10"),
        ("1-2-3", Ordering::Greater, "1-1-9"),
        ("6.1.192-2", Ordering::Greater, "6.1.176-1"),
        ("252.39-1~deb12u2", Ordering::Less, "252.39-1"),
        ("2.36-9+deb12u10", Ordering::Less, "2.36-9+deb12u13"),
        ("20230311+deb12u1", Ordering::Less, "20240101"),
        (
            "99999999999999999999999",
            Ordering::Less,
            "100000000000000000000000",
        ),
    ];

    #[test]
    fn versions_are_ordered_as_the_table_says() {
        for (left, order, right) in ORDERED {
            assert_eq!(compare(left, right), *order, "{left} against {right}");
            assert_eq!(
                compare(right, left),
                order.reverse(),
                "{right} against {left}"
            );
        }
    }

    #[test]
    #[expect(
        clippy::disallowed_macros,
        reason = "a test says its seed and what it left out"
    )]
    fn generated_versions_are_ordered_as_dpkg_orders_them() {
        if Command::new("dpkg").arg("--version").output().is_err() {
            eprintln!("SKIPPED: this machine has no dpkg to compare with.");
            return;
        }
        let seed = 0x5eed_0a57_u64;
        eprintln!("seed {seed:#x}");
        let mut state = seed;
        let mut next = move |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888);
            (state >> 33) % bound
        };
        let alphabet = [
            "0", "1", "9", "10", "a", "b", "Z", "~", "+", ".", "00", "deb",
        ];
        let mut part = |least: u64| {
            let length = least + next(5);
            let mut text = String::new();
            for _ in 0..length {
                text.push_str(alphabet[usize::try_from(next(12)).unwrap()]);
            }
            text
        };
        let mut versions = Vec::new();
        for round in 0..240 {
            let mut version = String::new();
            if round % 5 == 0 {
                version.push_str("1:");
            }
            version.push('1');
            version.push_str(&part(0));
            if round % 2 == 0 {
                version.push('-');
                version.push_str(&part(1));
            }
            versions.push(version);
        }
        for pair in versions.chunks_exact(2) {
            for (relation, word) in [
                (Relation::Less, "lt"),
                (Relation::Equal, "eq"),
                (Relation::Greater, "gt"),
            ] {
                let dpkg = Command::new("dpkg")
                    .args(["--compare-versions", &pair[0], word, &pair[1]])
                    .output()
                    .unwrap();
                assert_eq!(
                    dpkg.status.success(),
                    relation.holds(&pair[0], &pair[1]),
                    "{} {word} {}",
                    pair[0],
                    pair[1]
                );
            }
        }
    }
}
