//! What an answer says: records, how fresh they are, and tokens to go on from.
//!
//! Plain data that comes from the wire and that callers keep. The transport hands it
//! on with a node's answer, and an operation puts it into its own result, such as
//! `Got` or `Page`.
//!
//! Not done here: what went wrong (`error`), and the result of each operation, which
//! stands beside the operation.

mod level;
mod meta;
mod record;
mod token;

pub use level::Level;
pub use meta::Meta;
pub use record::Record;
pub use token::Token;
