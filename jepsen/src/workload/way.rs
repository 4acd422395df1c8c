//! What a worker asks of the nodes, whichever way it goes there.
//!
//! A [`Change`] or a read goes by the client library, or by a bare call ([`super::raw`]), and ends the same: with an answer, or with [`Failed`], which says whether the change may have been applied all the same.

use std::time::Duration;

use domicile_client::{
    Acknowledge, Error, Level, Meta as Told, Reason, RequestId, TagHandle, Token,
};
use domicile_proto::v1;
use domicile_proto::v1::condition::Condition;

use super::Worker;
use super::worker::number;
use crate::history::{Meta, RegionId, Value, Version};

/// How often a write of unknown outcome is sent again with its request id.
pub const AGAIN_MAX: u32 = 2;

/// The records of one page of the set: few, so that there are several.
pub(super) const SCAN_RECORDS: usize = 16;

/// A write or a delete.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    /// The key as it is sent.
    pub(super) key: Vec<u8>,
    /// The value as it is sent; `None`: the record is deleted.
    pub(super) value: Option<Vec<u8>>,
    /// What must hold for it.
    pub(super) condition: Option<Condition>,
    /// Whom it waits for; `None`: the home alone.
    pub(super) acknowledge: Option<Acknowledge>,
    /// Its request id; `None`: the library makes one, a bare call has none.
    pub(super) id: Option<RequestId>,
}

/// How fresh a read must be, and what the node does when it is not.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fresh<'a> {
    /// Linearizable.
    Strong,
    /// Whatever the node has.
    Local,
    /// Not older than a token, which is waited for.
    AtLeast(&'a Token),
    /// Not older than a bound.
    Bounded(Duration, v1::OnUnmet),
}

/// A change that is acknowledged.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The version it made, if it made one: a delete of nothing does not.
    pub(super) version: Option<Version>,
    /// A read at this sees it.
    pub(super) token: Token,
}

/// A record as it was read.
#[derive(Debug)]
pub(super) struct Shown {
    /// The value as it was sent, and its version; `None`: there is no record.
    pub(super) record: Option<(Vec<u8>, u64)>,
    /// Who answered, and how old the answer may be.
    pub(super) told: Told,
}

/// A set as it was read.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// The values as they were sent.
    pub(super) values: Vec<Vec<u8>>,
    /// Who answered last; empty: nobody said.
    pub(super) served_by: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failed {
    /// The stable reason.
    pub(super) reason: String,
    /// What was said, for a person.
    pub(super) said: String,
    /// What makes it safe to send the write again.
    pub(super) again: Option<RequestId>,
}

impl Failed {
    /// The reason, if it has a name that is known.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.reason.parse().ok()
    }

    /// Whether a write that ended so may have been applied.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(
            self.reason(),
            Some(Reason::WriteOutcomeUnknown | Reason::RequestForgotten | Reason::AckNotReached)
        )
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed {
            reason: error.reason_name().to_owned(),
            said: error.to_string(),
            again: error.request_id(),
        }
    }
}

impl Fresh<'_> {
    /// The same on the wire.
    pub(super) fn options(self) -> v1::ReadOptions {
        let mut options = v1::ReadOptions::default();
        match self {
            Fresh::Strong => options.set_level(v1::Level::Strong),
            Fresh::Local => options.set_level(v1::Level::Local),
            Fresh::AtLeast(token) => {
                options.set_level(v1::Level::AtLeast);
                options.token = token.as_bytes().to_vec().into();
                options.set_on_unmet(v1::OnUnmet::Wait);
            }
            Fresh::Bounded(bound, unmet) => {
                options.set_level(v1::Level::Bounded);
                options.bound_ms = bound.as_millis() as u64;
                options.set_on_unmet(unmet);
            }
        }
        options
    }

    fn of(self, get: domicile_client::Get) -> domicile_client::Get {
        match self {
            Fresh::Strong => get.strong(),
            Fresh::Local => get.local(),
            Fresh::AtLeast(token) => get.at_least(token).or_wait(),
            Fresh::Bounded(bound, unmet) => match unmet {
                v1::OnUnmet::Wait => get.max_staleness(bound).or_wait(),
                v1::OnUnmet::Fail => get.max_staleness(bound).or_fail(),
                _ => get.max_staleness(bound),
            },
        }
    }
}

impl Shown {
    /// What it shows that it must not: more than its position covers, or an age
    /// above the bound that it says to have met.
    fn beyond(&self, asked: Fresh<'_>) -> Option<String> {
        let by = &self.told.served_by;
        let (shown, as_of) = (self.version()?.0, self.told.as_of.get());
        if shown > as_of {
            return Some(format!("{by} showed version {shown} as of {as_of}"));
        }
        match (asked, self.told.level, self.told.lag) {
            (Fresh::Bounded(bound, _), Level::Bounded, lag) if lag.is_none_or(|l| l > bound) => {
                Some(format!(
                    "{by} met a bound of {bound:?} with an age of {lag:?}"
                ))
            }
            _ => None,
        }
    }

    /// The number in it, for the history.
    pub(super) fn value(&self) -> Value {
        let value = self.record.as_ref().map(|(value, _)| number(value));
        value.unwrap_or(Value::Null)
    }

    /// The version of the record, if there is one.
    pub(super) fn version(&self) -> Option<Version> {
        self.record.as_ref().map(|(_, version)| Version(*version))
    }

    /// What the answer says of itself, beside what was asked.
    pub(super) fn meta(&self, asked: Meta) -> Meta {
        Meta {
            version: self.version(),
            region: region(&self.told.served_by),
            served_by: Some(self.told.served_by.clone()),
            lag_ms: self.told.lag.map(|lag| lag.as_millis() as u64),
            ..asked
        }
    }
}

/// The region of `region/node`.
pub(super) fn region(served_by: &str) -> Option<RegionId> {
    let (region, _) = served_by.split_once('/')?;
    Some(RegionId::from(region))
}

impl Worker {
    /// Sends a write, and again with the same request id while its outcome is
    /// unknown and there is one. Answers that id, if it came to that or the
    /// write had it from the start.
    pub(super) async fn send(
        &self,
        tag: &str,
        change: &Change,
    ) -> (Result<Accepted, Failed>, Option<RequestId>) {
        let mut again = change.id;
        let mut attempt = 0;
        loop {
            let ended = match self.raw() {
                Some(raw) => raw.change(tag, change).await,
                None => send(self.handle(tag), change.clone(), again).await,
            };
            match ended {
                Err(Failed {
                    again: Some(id), ..
                }) if attempt < AGAIN_MAX => {
                    again = Some(id);
                    attempt += 1;
                }
                ended => return (ended, again),
            }
        }
    }

    /// Reads a record, at any node unless strongly.
    pub(super) async fn get(
        &self,
        tag: &str,
        key: Vec<u8>,
        fresh: Fresh<'_>,
    ) -> Result<Shown, Failed> {
        let shown = match self.raw() {
            Some(raw) => raw.get(tag, key, fresh).await?,
            None => {
                let handle = match fresh {
                    Fresh::Strong => self.handle(tag),
                    _ => self.anywhere(tag),
                };
                let got = fresh.of(handle.get(key)).await?;
                let record = got.record.as_ref();
                Shown {
                    record: record.map(|r| (r.value.as_ref().to_vec(), r.version.get())),
                    told: Told::clone(&got.meta),
                }
            }
        };
        if let Some(beyond) = shown.beyond(fresh) {
            *self.beyond.lock() = Some(format!("of {tag}: {beyond}"));
        }
        Ok(shown)
    }

    /// Reads all records of a prefix, page by page.
    pub(super) async fn list(
        &self,
        tag: &str,
        prefix: Vec<u8>,
        fresh: Fresh<'_>,
    ) -> Result<Listed, Failed> {
        if let Some(raw) = self.raw() {
            return raw.list(tag, prefix, fresh).await;
        }
        let scan = self.handle(tag).scan().prefix(prefix);
        let scan = scan.page_size(SCAN_RECORDS);
        let mut pages = match fresh {
            Fresh::Strong => scan.strong().pages(),
            _ => scan.local().pages(),
        };
        let mut listed = Listed::default();
        while let Some(page) = pages.next().await? {
            listed.served_by.clone_from(&page.meta.served_by);
            let values = page.records.iter().map(|row| row.value.as_ref().to_vec());
            listed.values.extend(values);
        }
        Ok(listed)
    }
}

/// One attempt by the library.
async fn send(
    tag: TagHandle,
    change: Change,
    again: Option<RequestId>,
) -> Result<Accepted, Failed> {
    let by = change.acknowledge.unwrap_or_default();
    let Some(value) = change.value else {
        let delete = tag.delete(change.key).acknowledge(by);
        let delete = match again {
            Some(id) => delete.request_id(id),
            None => delete,
        };
        let deleted = delete.await?;
        let version = Version(deleted.version.get());
        return Ok(Accepted {
            version: deleted.existed.then_some(version),
            token: deleted.token,
        });
    };
    let put = tag.put(change.key, value).acknowledge(by);
    let put = match change.condition {
        Some(Condition::IfAbsent(_)) => put.if_absent(),
        Some(Condition::IfVersion(version)) => put.if_version(version.into()),
        None => put,
    };
    let put = match again {
        Some(id) => put.request_id(id),
        None => put,
    };
    let written = put.await?;
    Ok(Accepted {
        version: Some(Version(written.version.get())),
        token: written.token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a read of version 7 is found to be, as of a version, at a level and
    /// an age.
    fn found(as_of: u64, level: v1::Level, lag_ms: Option<u64>) -> bool {
        let meta = v1::ReadMeta {
            level: level.into(),
            as_of,
            lag_ms,
            ..v1::ReadMeta::default()
        };
        let shown = Shown {
            record: Some((Vec::new(), 7)),
            told: meta.into(),
        };
        let bound = Duration::from_millis(50);
        let asked = Fresh::Bounded(bound, v1::OnUnmet::Forward);
        shown.beyond(asked).is_some()
    }

    #[test]
    fn an_answer_that_shows_more_than_it_says_or_is_older_is_found() {
        assert!(!found(7, v1::Level::Bounded, Some(50)));
        assert!(found(6, v1::Level::Bounded, Some(50)));
        assert!(found(7, v1::Level::Bounded, Some(51)));
        assert!(found(7, v1::Level::Bounded, None));
        // Forwarded, it is the home's answer, whose way took longer.
        assert!(!found(7, v1::Level::Strong, Some(90)));
    }
}
