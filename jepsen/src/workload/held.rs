//! What a copy holds, as one number.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use domicile_client::{Error, TagHandle};

/// Every record of a tag that one node answers, with its version.
pub(crate) struct Held {
    /// A digest of them.
    pub(crate) digest: String,
    /// How many there are.
    pub(crate) records: u64,
}

/// Reads every record of a tag, as the node has them that the client knows.
pub(crate) async fn held(tag: &TagHandle) -> Result<Held, Error> {
    let (mut digest, mut records) = (DefaultHasher::new(), 0);
    let mut pages = tag.scan().local().pages();
    while let Some(page) = pages.next().await? {
        for row in &page.records {
            row.key.as_ref().hash(&mut digest);
            row.value.as_ref().hash(&mut digest);
            row.version.get().hash(&mut digest);
            records += 1;
        }
    }
    Ok(Held {
        digest: format!("{:016x}", digest.finish()),
        records,
    })
}
