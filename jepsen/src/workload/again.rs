//! Writes that are sent again with their request id, long after they were
//! answered, as a network or a proxy might.

use domicile_client::Token;

use super::Worker;
use super::way::{Change, Fresh};
use crate::history::Version;

/// A write that was acknowledged, and is sent again later.
#[derive(Debug)]
pub(super) struct Kept {
    change: Change,
    version: Version,
}

impl Worker {
    /// Sends the last such write of the tag again, which must change nothing,
    /// and reads at the token of that answer; without one, makes one. Answers
    /// what must not be.
    pub async fn repeat(&mut self) -> Option<String> {
        let tag = self.tag().to_owned();
        let Some(kept) = self.kept.remove(&tag) else {
            self.once().await;
            return None;
        };
        let told = self.send(&tag, &kept.change).await.0.ok()?;
        let (wrote, now) = (kept.version, told.version);
        if now != Some(wrote) {
            return Some(format!(
                "a write of {tag} that was sent again came to version {now:?} instead of {wrote:?}"
            ));
        }
        let asked = Fresh::AtLeast(&told.token);
        let shown = self.get(&tag, kept.change.key, asked).await.ok()?;
        (shown.version() != Some(wrote)).then(|| {
            format!(
                "{} shows version {:?} of a record of {tag} that was written once, as {wrote:?}",
                shown.told.served_by,
                shown.version(),
            )
        })
    }

    /// Makes a write and sends it again at once. Answers the token of the
    /// second answer, whose write changed nothing; `None`: it did not come to
    /// that.
    pub(super) async fn token_of_nothing(&mut self) -> Option<Token> {
        let tag = self.tag().to_owned();
        self.once().await;
        let kept = self.kept.remove(&tag)?;
        Some(self.send(&tag, &kept.change).await.0.ok()?.token)
    }

    /// Writes a record that is written this once, and keeps the write.
    async fn once(&mut self) {
        let value = self.next_value();
        let tag = self.tag().to_owned();
        // An id of its own, of a client that hears no answer.
        let Ok(id) = self.handle(&tag).request_id().await else {
            return;
        };
        let change = Change {
            key: self.key(&format!("once-{value}")),
            value: Some(self.value_of(value)),
            id: Some(id),
            ..Change::default()
        };
        if let Ok(told) = self.send(&tag, &change).await.0
            && let Some(version) = told.version
        {
            self.kept.insert(tag, Kept { change, version });
        }
    }
}
