//! What a caller asks for, and what it gets.
//!
//! Each operation is a builder: a handle on a tag makes it, its methods say how, and
//! awaiting it sends it. It checks what it was given, makes the message for the wire,
//! hands that to its `transport::target::Target`, which answers once, and makes its
//! result of the answer. What reads have in common is in `read`, and of writes in
//! `write`: a condition, a request id, and one outcome however often it was sent.
//!
//! Not done here: the choice of a node, attempts and time (`transport`), and what
//! several answers have in common (`answer`).

pub(crate) mod batch;
pub(crate) mod bytes;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod put;
pub(crate) mod read;
pub(crate) mod register;
pub(crate) mod scan;
pub(crate) mod write;

/// The way from a builder to its future.
macro_rules! into_future {
    ($builder:ty => $output:ty) => {
        impl IntoFuture for $builder {
            type Output = Result<$output, crate::error::Error>;
            type IntoFuture = futures::future::BoxFuture<'static, Self::Output>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.send())
            }
        }
    };
}
pub(crate) use into_future;
