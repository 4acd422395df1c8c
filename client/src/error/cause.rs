//! Why there was no answer.

use std::fmt;
use std::sync::Arc;

/// Why there was no answer, in words. Programs decide by the kind of the
/// [`Error`](crate::Error), never by this text.
#[derive(Clone, PartialEq, Eq)]
pub struct Cause(Arc<str>);

impl Cause {
    /// A cause in words.
    pub(crate) fn new(text: &str) -> Self {
        Cause(text.into())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
