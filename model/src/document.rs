//! Files that people write: YAML to a tree with places, and the problems found in it.
//!
//! ```text
//! text --yaml--> Node (values with places) --Reader--> checked types
//!                    \________________________/ each adds to Vec<Diagnostic>
//! ```
//!
//! A deserializer stops at its first error; somebody who fixes a file wants all
//! of them at once. So the tree is read by hand, with [`Reader`] holding the
//! place, the path and the list of problems (docs/decisions/0005).

pub mod diagnostic;
pub mod node;
pub mod print;
pub mod reader;
pub mod suggest;
pub mod yaml;

pub use diagnostic::{Code, Diagnostic, Place, Severity};
pub use node::{Key, Node, Value};
pub use reader::{Fields, Reader};

/// What a file amounts to: the checked value when nothing is wrong, and every problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked<T> {
    /// Present exactly when no problem is an error.
    pub value: Option<T>,
    /// In the order of the file.
    pub problems: Vec<Diagnostic>,
}

impl<T> Checked<T> {
    /// The value, or the problems.
    pub fn into_result(self) -> Result<T, Vec<Diagnostic>> {
        self.value.ok_or(self.problems)
    }
}
