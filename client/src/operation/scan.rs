//! Reading records in key order.

use std::time::Duration;

use bytes::Bytes;
use domicile_proto::limits::{KEY_BYTES_MAX, SCAN_PAGE_MAX};
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};

use crate::answer::{Meta, Record};
use crate::env;
use crate::error::Error;
use crate::operation::bytes::IntoBytes;
use crate::operation::into_future;
use crate::operation::read::{Options, freshness};
use crate::transport::reply::{Reply, wrong_reply};
use crate::transport::retry::Safety;
use crate::transport::target::{Plan, Target};

/// A scan that is not sent yet: await it for one page, or take [`Scan::pages`]
/// or [`Scan::records`].
#[derive(Clone)]
#[must_use = "a scan does nothing until it is awaited or streamed"]
pub struct Scan {
    target: Target,
    start: Bytes,
    end: Bytes,
    page_size: usize,
    page_token: Bytes,
    options: Options,
}

/// A page of a scan. `Debug` shows no key and no value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page {
    /// The records, in key order.
    pub records: Vec<Record>,
    /// Who answered, and how old the answer may be.
    pub meta: Meta,
    next: PageToken,
}

/// Kept apart because its bytes may hold a key.
#[derive(Clone)]
struct PageToken(Bytes);

impl std::fmt::Debug for PageToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageToken({} bytes)", self.0.len())
    }
}

impl Page {
    /// The token of the next page; `None`: this was the last. It may hold a
    /// key, so treat it like one.
    pub fn next_page_token(&self) -> Option<Bytes> {
        (!self.next.0.is_empty()).then(|| self.next.0.clone())
    }
}

impl Scan {
    pub(crate) fn new(target: Target) -> Self {
        Scan {
            target,
            start: Bytes::new(),
            end: Bytes::new(),
            page_size: 0,
            page_token: Bytes::new(),
            options: Options::default(),
        }
    }

    /// Reads the keys that begin with these bytes. It sets start and end.
    pub fn prefix(mut self, prefix: impl IntoBytes) -> Self {
        self.start = prefix.into_bytes();
        self.end = after_prefix(&self.start);
        self
    }

    /// The first key, inclusive.
    pub fn start(mut self, key: impl IntoBytes) -> Self {
        self.start = key.into_bytes();
        self
    }

    /// The end key, exclusive.
    pub fn end(mut self, key: impl IntoBytes) -> Self {
        self.end = key.into_bytes();
        self
    }

    /// How many records a page holds at most. Default: 1,000; at most 10,000.
    pub fn page_size(mut self, records: usize) -> Self {
        self.page_size = records;
        self
    }

    /// Goes on behind a page, at the version of the first.
    pub fn page_token(mut self, token: impl IntoBytes) -> Self {
        self.page_token = token.into_bytes();
        self
    }

    freshness!();

    /// Reads one page. The same as awaiting the builder.
    pub async fn send(self) -> Result<Page, Error> {
        self.page(self.page_token.clone(), self.options.timeout)
            .await
    }

    /// All pages, at one version.
    pub fn pages(self) -> Pages {
        Pages {
            next: Some(self.page_token.clone()),
            scan: self,
        }
    }

    /// All records, at one version.
    pub fn records(self) -> impl Stream<Item = Result<Record, Error>> + Send + Unpin {
        let records = self.pages().into_stream();
        let records = records.map_ok(|page| stream::iter(page.records.into_iter().map(Ok)));
        records.try_flatten().boxed()
    }

    async fn page(&self, page_token: Bytes, timeout: Option<Duration>) -> Result<Page, Error> {
        if self.start.len().max(self.end.len()) > KEY_BYTES_MAX || self.page_size > SCAN_PAGE_MAX {
            return Err(Error::invalid(format!(
                "a scan's keys have at most {KEY_BYTES_MAX} bytes, its pages {SCAN_PAGE_MAX} records"
            )));
        }
        let scan = Operation::Scan(v1::ScanRequest {
            start: self.start.clone(),
            end: self.end.clone(),
            page_size: u32::try_from(self.page_size).unwrap_or(u32::MAX),
            page_token,
            options: self.options.to_proto(),
        });
        let plan = Plan {
            safety: Safety::Read,
            wants_leader: self.options.wants_leader(),
            timeout,
            attempt_min: self.options.attempt_min(),
            again: false,
            waits: self.options.waits(),
        };
        match self.target.call(scan, plan).await? {
            Reply::Scan(page) => Ok(Page {
                records: page
                    .records
                    .into_iter()
                    .map(Record::try_from)
                    .collect::<Result<_, _>>()?,
                meta: page.meta.unwrap_or_default().into(),
                next: PageToken(page.next_page_token),
            }),
            _ => Err(wrong_reply()),
        }
    }
}

into_future!(Scan => Page);

/// Shows the tag, no key.
impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("tag", self.target.tag())
            .field("page_size", &self.page_size)
            .finish_non_exhaustive()
    }
}

/// The pages of a scan, one after the other.
pub struct Pages {
    scan: Scan,
    /// The token of the next page; `None` after the last.
    next: Option<Bytes>,
}

/// Shows no token, since it may hold a key.
impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages")
            .field("scan", &self.scan)
            .finish_non_exhaustive()
    }
}

impl Pages {
    /// The next page; `None` after the last. After an error it may be called
    /// again for the same page. A node looks at so many rows for one page and no
    /// more, so over many deleted records pages come empty; they are passed
    /// over here, within the time of one operation.
    pub async fn next(&mut self) -> Result<Option<Page>, Error> {
        let timeout = self.scan.options.timeout;
        let timeout = timeout.unwrap_or(self.scan.target.timeout());
        let deadline = env::after(timeout);
        loop {
            let Some(token) = self.next.clone() else {
                return Ok(None);
            };
            let left = deadline.saturating_duration_since(env::now());
            let page = self.scan.page(token, Some(left)).await?;
            self.next = page.next_page_token();
            if !page.records.is_empty() || self.next.is_none() {
                return Ok(Some(page));
            }
        }
    }

    /// The pages as a stream, which ends with the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Page, Error>> + Send + Unpin {
        stream::try_unfold(self, |mut pages| async move {
            let page = pages.next().await?;
            Ok(page.map(|page| (page, pages)))
        })
        .boxed()
    }
}

/// The smallest key above all keys with this prefix; empty: there is none.
fn after_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX);
    let mut end = kept.map_or(Vec::new(), |last| prefix[..=last].to_vec());
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

#[cfg(test)]
mod tests {
    use super::after_prefix;

    #[test]
    fn the_end_of_a_prefix_is_the_next_one() {
        assert_eq!(&after_prefix(b"user/")[..], b"user0");
        assert_eq!(&after_prefix(&[1, 255, 255])[..], &[2]);
        assert!(after_prefix(&[255]).is_empty());
        assert!(after_prefix(b"").is_empty());
    }
}
