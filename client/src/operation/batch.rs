//! Many operations at once.

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, StreamExt};

use crate::error::Error;
use crate::operation::delete::{Delete, Deleted};
use crate::operation::get::{Get, Got};
use crate::operation::put::{Put, Written};

/// The most operations of one batch that are under way at once: as many as
/// fill a few frames.
const IN_FLIGHT_MAX: usize = 1024;

/// Operations that are sent together. They are no transaction: each succeeds
/// or fails for itself, in no order.
#[derive(Debug, Default)]
#[must_use = "a batch does nothing until it is sent"]
pub struct Batch {
    operations: Vec<Operation>,
}

#[derive(Debug)]
enum Operation {
    Put(Put),
    Get(Get),
    Delete(Delete),
}

/// The result of an operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Of a put.
    Put(Written),
    /// Of a get.
    Get(Got),
    /// Of a delete.
    Delete(Deleted),
}

impl Batch {
    /// Adds a put.
    pub fn put(mut self, put: Put) -> Self {
        self.operations.push(Operation::Put(put));
        self
    }

    /// Adds a get.
    pub fn get(mut self, get: Get) -> Self {
        self.operations.push(Operation::Get(get));
        self
    }

    /// Adds a delete.
    pub fn delete(mut self, delete: Delete) -> Self {
        self.operations.push(Operation::Delete(delete));
        self
    }

    /// How many operations it holds.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Sends it. The results stand in the order in which the operations were
    /// added.
    pub async fn send(self) -> Vec<Result<Outcome, Error>> {
        let operations = stream::iter(self.operations).map(Operation::send);
        operations.buffered(IN_FLIGHT_MAX).collect().await
    }
}

impl Operation {
    async fn send(self) -> Result<Outcome, Error> {
        Ok(match self {
            Operation::Put(put) => Outcome::Put(put.send().await?),
            Operation::Get(get) => Outcome::Get(get.send().await?),
            Operation::Delete(delete) => Outcome::Delete(delete.send().await?),
        })
    }
}

impl IntoFuture for Batch {
    type Output = Vec<Result<Outcome, Error>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().boxed()
    }
}
