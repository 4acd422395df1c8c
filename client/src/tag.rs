//! A handle on the records of one tag: where operations start.

use std::fmt;

use domicile_proto::address::Tag;

use crate::error::Error;
use crate::operation::batch::Batch;
use crate::operation::bytes::IntoBytes;
use crate::operation::delete::Delete;
use crate::operation::get::Get;
use crate::operation::put::Put;
use crate::operation::register::register;
use crate::operation::scan::Scan;
use crate::request_id::RequestId;
use crate::transport::target::Target;

/// The records of one tag. Cheap to clone.
#[derive(Clone)]
pub struct TagHandle(Target);

impl TagHandle {
    pub(crate) fn new(target: Target) -> Self {
        TagHandle(target)
    }

    /// The tag.
    pub fn tag(&self) -> &Tag {
        self.0.tag()
    }

    /// Writes a record. The answer means that a quorum of the home has it on
    /// disk.
    pub fn put(&self, key: impl IntoBytes, value: impl IntoBytes) -> Put {
        Put::new(self.0.clone(), key.into_bytes(), value.into_bytes())
    }

    /// Reads a record.
    pub fn get(&self, key: impl IntoBytes) -> Get {
        Get::new(self.0.clone(), key.into_bytes())
    }

    /// Deletes a record. Deleting one that does not exist succeeds.
    pub fn delete(&self, key: impl IntoBytes) -> Delete {
        Delete::new(self.0.clone(), key.into_bytes())
    }

    /// Reads records in key order, in pages.
    pub fn scan(&self) -> Scan {
        Scan::new(self.0.clone())
    }

    /// Asks the tag's home for an id of the caller's own, for writes that may be
    /// sent again after this process has ended: the caller keeps it, counts its
    /// writes by [`RequestId::next`], and never gives one id to two writes.
    /// Other writes need none: the library has its own.
    pub async fn request_id(&self) -> Result<RequestId, Error> {
        register(&self.0, self.0.timeout()).await
    }

    /// Collects operations that are sent together. They are no transaction:
    /// each succeeds or fails for itself, in no order.
    pub fn batch(&self) -> Batch {
        Batch::default()
    }
}

impl fmt::Debug for TagHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TagHandle").field(self.tag()).finish()
    }
}
