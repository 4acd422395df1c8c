//! Fills a mirror that is not open from a view of its home.
//!
//! The view is read page by page, and a mirror takes pages in their order only. One
//! that it does not take, for it has no room or is not reached, ends the session; the
//! next one asks how many pages the mirror has and goes on from there. A page is read
//! again from the same view, so that it is the same one.

use std::collections::VecDeque;

use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use peer::ship::Cargo;
use tokio::sync::OwnedSemaphorePermit;

use super::backfill::{Fill, Left};
use super::batch_number;
use super::sender::{BATCHES_IN_FLIGHT_MAX, Ended, Flight, Sender, compress};
use crate::error::Result;
use crate::raft::NodeId;
use crate::state::{Position, feed, ledger};
use crate::storage::{View, in_place};

/// A page that is to be sent, and its place among those on their way.
type Paged = (disk::Backfill, OwnedSemaphorePermit);

impl Sender {
    /// Fills the mirror, which is as it was `seen`, from a view of the home. What of it
    /// is `kept` from the session before goes on.
    pub(super) async fn fill(
        &self,
        node: NodeId,
        seen: &disk::MirrorState,
        kept: &mut Option<Fill>,
    ) -> Result<(), Ended> {
        // Its error says that the sender is closed, which it never is.
        let _turn = self.peers.fills().acquire().await;
        let resumed = kept.take().and_then(|fill| fill.resume(seen));
        let mut fill = match resumed {
            Some(fill) => fill,
            None => self.begin(node, seen).await?,
        };
        let ended = self.send_pages(node, &mut fill).await;
        if ended.is_err() {
            *kept = Some(fill);
        }
        ended
    }

    /// Has the mirror emptied, to be filled from now on.
    async fn begin(&self, node: NodeId, seen: &disk::MirrorState) -> Result<Fill, Ended> {
        // A leader that was deposed and has not heard of it would empty what the next one
        // fills.
        let confirmed = self.group.read_barrier().await;
        confirmed.map_err(|_| Ended::Lost)?;
        let attempt = self.env.random() | 1;
        let (progress, view) = self.group.position().await?;
        let begin = disk::BeginBackfill {
            incarnation: self.incarnation,
            seen_attempt: seen.attempt,
            seen_open: seen.open,
            attempt,
            position: progress.changed.to_wire(),
            changed_version: progress.changed_version,
        };
        let begun = self.ship(node, Cargo::BeginBackfill(begin)).await?;
        if begun.attempt != attempt {
            return Err(Ended::Moved);
        }
        Ok(Fill {
            attempt,
            view,
            left: Left::Records(bytes::Bytes::new()),
            pages: 0,
            unanswered: VecDeque::new(),
            advanced: self.env.now(),
        })
    }

    /// Sends what is left of a fill, and opens the mirror when it has all.
    async fn send_pages(&self, node: NodeId, fill: &mut Fill) -> Result<(), Ended> {
        let mut flights: FuturesOrdered<Flight> = FuturesOrdered::new();
        loop {
            let pages = self.next_pages(fill, flights.len()).await?;
            let ends = self.ends();
            self.account(pages.iter().map(|(page, _)| ledger::of_page(ends, page)))
                .await?;
            for page in pages {
                flights.push_back(self.send_page(node, page));
            }
            match flights.next().await {
                Some((_, state)) => fill.took(state?.pages, self.env.now()),
                None if fill.left == Left::Nothing => break,
                None => {}
            }
        }
        let end = disk::EndBackfill {
            incarnation: self.incarnation,
            attempt: fill.attempt,
            pages: fill.pages,
        };
        self.ship(node, Cargo::EndBackfill(end)).await?;
        Ok(())
    }

    /// The pages that may be sent beside so many that are on their way.
    async fn next_pages(&self, fill: &mut Fill, flying: usize) -> Result<Vec<Paged>, Ended> {
        let mut pages = Vec::new();
        self.disk.answers()?;
        while fill.left != Left::Nothing && flying + pages.len() < BATCHES_IN_FLIGHT_MAX {
            let places = self.peers.fill_pages().clone();
            // Whoever has pages on their way goes on with the answers to those.
            let place = match flying == 0 && pages.is_empty() {
                true => places.acquire_owned().await.ok(),
                false => places.try_acquire_owned().ok(),
            };
            let Some(place) = place else { break };
            let begin = fill.left.clone();
            let page = in_place(|| self.fill_page(fill.view.as_ref(), &mut fill.left));
            let (records, outcomes) = self.disk.report(page)?;
            if !records.is_empty() || !outcomes.is_empty() {
                let page = self.backfill(fill.attempt, fill.pages, records, outcomes);
                fill.unanswered.push_back((page.page, begin));
                fill.pages += 1;
                pages.push((page, place));
            }
        }
        Ok(pages)
    }

    /// Sends a page on its way.
    fn send_page(&self, node: NodeId, (page, place): Paged) -> Flight {
        let (attempt, number, count) = (page.attempt, page.page, page.records.len() as u64);
        let digest = ledger::digest(&page.records);
        let answer = self.ship_records(node, Cargo::Backfill(compress(&page)), digest);
        let lane = self.lane.clone();
        Box::pin(async move {
            let state = answer.await;
            drop(place);
            let state = state.and_then(|state| match state {
                // It may have had this one, and those behind it, from before.
                state if state.attempt == attempt && state.pages > number => Ok(state),
                _ => Err(Ended::Moved),
            });
            if state.is_ok() {
                lane.update(|lane| lane.records += count);
            }
            (Position::default(), state)
        })
    }

    /// The next page of what is left of a backfill: records first, then what is
    /// remembered of identified writes.
    pub(super) fn fill_page(
        &self,
        view: &dyn View,
        left: &mut Left,
    ) -> Result<(Vec<disk::CopiedRecord>, Vec<disk::CopiedOutcomes>)> {
        match left {
            Left::Records(start) => {
                let page = feed::records(
                    view,
                    self.lane.id().tag.as_str(),
                    &self.group.identity().span,
                    start,
                )?;
                *left = match page.next {
                    Some(next) => Left::Records(next),
                    None => Left::Outcomes(Position::default()),
                };
                Ok((page.records, Vec::new()))
            }
            Left::Outcomes(after) => {
                let page = feed::outcomes(view, self.group.identity().group, *after)?;
                *left = page.last.map_or(Left::Nothing, Left::Outcomes);
                Ok((Vec::new(), page.outcomes))
            }
            Left::Nothing => Ok((Vec::new(), Vec::new())),
        }
    }

    /// A page of a backfill. Sent again it is the same one.
    pub(super) fn backfill(
        &self,
        attempt: u64,
        page: u64,
        records: Vec<disk::CopiedRecord>,
        outcomes: Vec<disk::CopiedOutcomes>,
    ) -> disk::Backfill {
        disk::Backfill {
            incarnation: self.incarnation,
            attempt,
            page,
            transfer: batch_number::of_page(
                &self.lane.id().region,
                self.incarnation,
                attempt,
                page,
            ),
            from: self.gate.region().to_string(),
            records,
            outcomes,
            policy_version: self.policy_version(),
            sent_ms: self.env.wall_ms(),
        }
    }
}
