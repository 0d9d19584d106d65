//! The seven kinds of document that platform teams write, and their validation.
//!
//! The same types serve files on a laptop, `countersign apply` and custom resources. [`parse`] makes documents of
//! text, [`Set`] is what they refer to one another in, [`validate`] finds what is wrong with them; each error says
//! where it stands, what is allowed, and what was probably meant.

pub mod crd;
pub mod diagnostic;
pub mod kind;
pub mod parse;
pub mod reference;
pub mod rules;
pub mod set;
pub mod tree;
pub mod validate;
pub mod values;

pub use diagnostic::{Diagnostic, Severity};
pub use kind::{Kind, Spec};
pub use parse::{Document, Parsed, parse};
pub use set::Set;
pub use validate::validate;
