//! Scans: pages at one version, wherever they are read.
//!
//! The token of a page says which scan it belongs to and at which version it reads. A
//! copy that is behind that version waits, forwards or refuses; a home that has lost
//! it says so. A scan over several ranges is read at the home, at the last version of
//! any of them: the others are taken up to it first, so that no later write has a
//! version below.
//!
//! Not done here: reading rows (`state::read`), what a level asks for
//! ([`super::reach`]).

use std::sync::Arc;

use bytes::Bytes;
use disk::operation::Change;
use domicile_proto::disk::v1 as disk;
use domicile_proto::limits::{KEY_BYTES_MAX, SCAN_PAGE_DEFAULT, SCAN_PAGE_MAX};
use domicile_proto::page::{self, PageToken, PageTokenError};
use domicile_proto::v1;

use crate::error::{Error, Reason, Result};
use crate::kv::directory::{Admitted, LocalCopy, Route};
use crate::kv::failure::{WAIT_STEP, elsewhere};
use crate::kv::permits::Scanner;
use crate::kv::read::READS_MAX;
use crate::kv::read::options::{Level, OnUnmet, ReadOptions};
use crate::kv::read::reach::{Reached, Served, WAIT_MAX, not_met, replaced};
use crate::kv::store::Store;
use crate::kv::tokens;
use crate::raft::Progress;
use crate::state::read::{self, ScanQuery};

/// Where a scan is.
struct At {
    /// Its version, once it is chosen, and the first key of the page.
    page: PageToken,
    /// Whether this is the first page.
    is_first: bool,
    /// Whether the scan touches several ranges.
    is_of_several: bool,
}

impl Store {
    /// Reads one page of a scan, when it is the turn of who asks.
    pub async fn scan(
        &self,
        admitted: &Arc<Admitted>,
        request: v1::ScanRequest,
        scanner: &Scanner,
    ) -> Result<v1::ScanResponse> {
        match self.scan_here(admitted, &request, scanner).await? {
            Some(page) => Ok(page),
            None => self.scan_at_home(admitted, request).await,
        }
    }

    /// The same from what this node has; `None`: it is for the home to answer.
    pub(super) async fn scan_here(
        &self,
        admitted: &Arc<Admitted>,
        request: &v1::ScanRequest,
        scanner: &Scanner,
    ) -> Result<Option<v1::ScanResponse>> {
        let options = ReadOptions::from_wire(request.options.as_ref())?;
        let page_size = request.page_size as usize;
        if page_size > SCAN_PAGE_MAX {
            return Err(Error::invalid(format!(
                "a page holds at most {SCAN_PAGE_MAX} records; ask for fewer"
            )));
        }
        for bound in [&request.start, &request.end] {
            if bound.len() > KEY_BYTES_MAX {
                return Err(Error::invalid(format!(
                    "a key has at most {KEY_BYTES_MAX} bytes"
                )));
            }
        }
        // The keys of the first range seal the tokens of all pages.
        let first = admitted.of_key(&request.start);
        let page = match (self.scan_bounds(&first, request)?, &first.here) {
            (Some(page), _) => page,
            (None, LocalCopy::Home(group)) => {
                // It may be behind the one that gave the token.
                group.read_barrier().await?;
                self.scan_bounds(&first, request)?
                    .ok_or_else(foreign_page)?
            }
            (None, _) => return Ok(None),
        };
        let route = admitted.of_key(&page.next);
        let mut at = At {
            is_first: page.version.is_none(),
            is_of_several: admitted.of_span(&request.start, &request.end).len() > 1,
            page,
        };
        if at.is_of_several && at.is_first {
            let routes = admitted.of_span(&request.start, &request.end);
            match self.closed(&routes, &options).await? {
                Some(version) => at.page.version = Some(version),
                None => return Ok(None),
            }
        }
        for _ in 0..READS_MAX {
            let reached = match self.reach(&route, &options).await? {
                Served::Here(reached) => reached,
                Served::AtHome => return Ok(None),
            };
            let reached = match self.behind(&route, &options, &at, reached).await? {
                Served::Here(reached) => reached,
                Served::AtHome => return Ok(None),
            };
            let page = self.page((&first, &route), request, &at, (&reached, scanner));
            let page = page.await;
            if !self.counts(&route, &reached)? {
                continue;
            }
            return match page {
                // The home has the history that a mirror lacks.
                Err(lacking)
                    if lacking.reason == Reason::Compacted
                        && !matches!(route.here, LocalCopy::Home(_))
                        && options.on_unmet == OnUnmet::Forward =>
                {
                    Ok(None)
                }
                page => page.map(Some),
            };
        }
        Err(replaced(&route))
    }

    /// Chooses the version at which several ranges are read: the last one of any of
    /// them. Every other is taken up to it, so that nothing is written below it any
    /// more. `None`: it is for the home to choose.
    async fn closed(&self, routes: &[Route], options: &ReadOptions) -> Result<Option<u64>> {
        let mut last = Vec::with_capacity(routes.len());
        for route in routes {
            match &route.here {
                LocalCopy::Home(group) => last.push(group.read_barrier().await?),
                LocalCopy::Nothing if route.home == *self.gate.region() => return Err(elsewhere()),
                // No mirror of one range knows how far the others' homes are.
                LocalCopy::Mirror { .. } | LocalCopy::Nothing => {
                    let answers = options.on_unmet != OnUnmet::Fail;
                    return match answers || options.level == Level::Strong {
                        true => Ok(None),
                        false => Err(not_met()),
                    };
                }
            }
        }
        let version = last.iter().map(|p| p.changed_version).max().unwrap_or(0);
        for (route, progress) in routes.iter().zip(last) {
            if progress.last_version < version {
                let advance = Change::Advance(disk::Advance { version });
                let advanced = self.write_alone(route, advance).await;
                advanced.map_err(not_closed)?;
            }
        }
        Ok(Some(version))
    }

    /// The scan that a page token belongs to, and where it goes on; without one,
    /// where it begins. `None`: this node cannot tell, and passes it on unopened.
    fn scan_bounds(&self, route: &Route, request: &v1::ScanRequest) -> Result<Option<PageToken>> {
        if request.page_token.is_empty() {
            return Ok(Some(PageToken {
                version: None,
                next: request.start.clone(),
            }));
        }
        let scan = page::Scan {
            tag: route.tag.as_str(),
            start: &request.start,
            end: &request.end,
        };
        let keys = tokens::keys(route);
        match PageToken::open(&request.page_token, &scan, |key| keys.token(key)) {
            Ok(page) => Ok(Some(page)),
            Err(PageTokenError::UnknownKey) => Ok(None),
            Err(PageTokenError::Foreign) => Err(foreign_page()),
        }
    }

    /// Does what the request wants when the copy here is behind the first page
    /// of its scan.
    async fn behind(
        &self,
        route: &Route,
        options: &ReadOptions,
        at: &At,
        reached: Reached,
    ) -> Result<Served> {
        let wanted = at.page.version.unwrap_or(0);
        // A range that was closed at a version need not have changed at it; and
        // mirrors hear of changes alone.
        let closed = |progress: &Progress| match (&route.here, at.is_of_several) {
            (LocalCopy::Home(_), true) => progress.last_version,
            _ => progress.changed_version,
        };
        if closed(&reached.progress) >= wanted {
            return Ok(Served::Here(reached));
        }
        let behind = || {
            Error::new(
                Reason::StalenessNotMet,
                "this copy is behind the first page of the scan; go on at another node",
            )
            .retry_after(WAIT_STEP)
        };
        if let LocalCopy::Home(group) = &route.here {
            // It has all that was committed: what gave the page is lost. Passed on,
            // it would come back here.
            let confirmed = group.read_barrier().await?;
            if closed(&confirmed) < wanted {
                return Err(Error::new(
                    Reason::SessionLost,
                    "the version of the first page of the scan was lost with a former home; \
                     begin again",
                ));
            }
            return self.reach(route, options).await;
        }
        match (options.on_unmet, route.group()) {
            (OnUnmet::Fail, _) | (_, None) => Err(behind()),
            (OnUnmet::Forward, Some(_)) => Ok(Served::AtHome),
            // A range that did not change at the version never gets there.
            (OnUnmet::Wait, Some(_)) if at.is_of_several => Ok(Served::AtHome),
            (OnUnmet::Wait, Some(group)) => {
                let mut progress = group.watch_progress();
                let met = progress.wait_for(|p| closed(p) >= wanted);
                match tokio::time::timeout(WAIT_MAX, met).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) | Err(_) => return Err(behind()),
                }
                self.reach(route, options).await
            }
        }
    }

    /// Reads one page of a range from what this node has. The page ends with the
    /// range at the latest.
    async fn page(
        &self,
        (first, route): (&Route, &Route),
        request: &v1::ScanRequest,
        at: &At,
        (reached, scanner): (&Reached, &Scanner),
    ) -> Result<v1::ScanResponse> {
        let changed_version = reached.progress.changed_version;
        let version = at.page.version.unwrap_or(changed_version);
        let floor = reached.progress.mirror.map_or(0, |m| m.history_floor);
        if version < floor {
            return Err(Error::new(
                Reason::Compacted,
                "the mirror here was filled after the first page of the scan, and has nothing of \
                 before; go on at the node that gave the page, or begin again",
            )
            .fact("floor", floor));
        }
        let span_end = route.span.end();
        let beyond = span_end.filter(|end| request.end.is_empty() || **end < request.end);
        let query = ScanQuery {
            start: at.page.next.clone(),
            end: beyond.unwrap_or(&request.end).clone(),
            records_max: match request.page_size as usize {
                0 => SCAN_PAGE_DEFAULT,
                size => size,
            },
            version,
        };
        let tag = route.tag.clone();
        let permit = self.permits.wait(scanner).await?;
        let page = self.disk.blocking(move |disk| {
            // Held until it is read: whoever asked may have gone by then.
            let _permit = permit;
            let page = read::scan(disk.state.as_ref(), tag.as_str(), &query);
            disk.report(page)
        });
        let page = page.await?;
        let scan = page::Scan {
            tag: route.tag.as_str(),
            start: &request.start,
            end: &request.end,
        };
        // Behind the range goes on the next; at the end of the scan none does.
        let is_asked = |next: &Bytes| request.end.is_empty() || *next < request.end;
        let next = page.next.or(beyond.cloned()).filter(is_asked);
        let next = next.map(|next| PageToken {
            version: Some(version),
            next,
        });
        Ok(v1::ScanResponse {
            records: page.records,
            next_page_token: match (next, tokens::keys(first).newest()) {
                (None, _) => Bytes::new(),
                (Some(next), Some(key)) => next.seal(&scan, (key.id, &key.token)),
                (Some(_), None) => return Err(elsewhere()),
            },
            meta: Some(self.page_meta(route, version, at.is_first, reached)),
        })
    }

    /// What a page says of itself. A later one shows what stood when the first was
    /// read: once something was written since, nobody knows how old that is.
    fn page_meta(
        &self,
        route: &Route,
        version: u64,
        is_first: bool,
        reached: &Reached,
    ) -> v1::ReadMeta {
        let meta = self.meta(route, reached);
        if is_first || version == meta.as_of {
            return v1::ReadMeta {
                as_of: version,
                ..meta
            };
        }
        v1::ReadMeta {
            level: v1::Level::Local.into(),
            as_of: version,
            lag_ms: None,
            ..meta
        }
    }
}

/// A range was not taken up to the version of the others. It is a read: whether its
/// entry is in the log matters to nobody.
fn not_closed(why: Error) -> Error {
    match why.reason {
        Reason::WriteOutcomeUnknown | Reason::Unreachable => Error::new(
            Reason::NoQuorum,
            "the ranges of the scan could not be brought to one version now; try again",
        )
        .retry_after(WAIT_STEP),
        _ => why,
    }
}

fn foreign_page() -> Error {
    Error::invalid(
        "the page token is of another scan; go on with the tag, start and end that gave it",
    )
}
