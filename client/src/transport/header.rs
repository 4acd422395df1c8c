//! A tag, as requests carry it.

use domicile_proto::address::Tag;
use tonic::metadata::{Ascii, MetadataValue};

use crate::error::Error;

/// A tag, as requests carry it.
#[derive(Debug)]
pub(crate) struct TagHeader {
    /// The tag: frames of a session name it.
    pub(crate) tag: Tag,
    /// The tag as request metadata, for unary calls.
    pub(crate) metadata: MetadataValue<Ascii>,
}

impl TagHeader {
    /// The header of a tag's requests.
    pub(crate) fn new(tag: Tag) -> Result<Self, Error> {
        let metadata = MetadataValue::try_from(tag.as_str())
            .map_err(|_| Error::invalid("the tag cannot stand in request metadata"))?;
        Ok(TagHeader { tag, metadata })
    }
}
