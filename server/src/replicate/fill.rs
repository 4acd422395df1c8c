//! Fills a mirror that is not open from a view of its home.

use domicile_proto::internal::v1 as wire;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use wire::ship::Cargo;

use super::sender::{BATCHES_IN_FLIGHT_MAX, Ended, Flight, Sender, compress};
use super::transfer;
use crate::error::Result;
use crate::raft::NodeId;
use crate::state::{Position, feed, ledger};
use crate::storage::View;

/// What of a backfill is still to be sent.
#[derive(PartialEq, Eq)]
pub(super) enum Left {
    /// The records from this key on.
    Records(bytes::Bytes),
    /// What is remembered of identified writes behind this entry.
    Outcomes(Position),
    /// Nothing.
    Nothing,
}

impl Sender {
    /// Fills the mirror, which is as it was `seen`, from a view of the home.
    pub(super) async fn fill(&self, node: NodeId, seen: &wire::MirrorState) -> Result<(), Ended> {
        // Its error says that the sender is closed, which it never is.
        let _turn = self.peers.fills().acquire().await;
        let attempt = self.env.random() | 1;
        let (progress, view) = self.group.position().await?;
        let begin = wire::BeginBackfill {
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
        let mut left = Left::Records(bytes::Bytes::new());
        let mut pages = 0;
        let mut flights: FuturesOrdered<Flight> = FuturesOrdered::new();
        loop {
            let mut batches = Vec::new();
            while left != Left::Nothing && flights.len() + batches.len() < BATCHES_IN_FLIGHT_MAX {
                let places = self.peers.fill_pages().clone();
                // Whoever has pages on their way goes on with the answers to those.
                let place = match flights.is_empty() && batches.is_empty() {
                    true => places.acquire_owned().await.ok(),
                    false => places.try_acquire_owned().ok(),
                };
                let Some(place) = place else { break };
                let page = self.fill_page(view.as_ref(), &mut left);
                let (records, outcomes) = self.disk.heard(page)?;
                if !records.is_empty() || !outcomes.is_empty() {
                    batches.push((self.backfill(attempt, pages, records, outcomes), place));
                    pages += 1;
                }
            }
            let ends = self.ends();
            self.account(batches.iter().map(|(page, _)| ledger::of_page(ends, page)))
                .await?;
            for (page, place) in batches {
                let count = page.records.len() as u64;
                let expected = page.page + 1;
                let digest = ledger::digest(&page.records);
                let packed = Cargo::Backfill(compress(&page));
                let answer = self.ship_records(node, packed, digest);
                flights.push_back(Box::pin(async move {
                    let state = answer.await;
                    drop(place);
                    let state = state.and_then(|state| match state {
                        state if state.attempt == attempt && state.pages == expected => Ok(state),
                        _ => Err(Ended::Moved),
                    });
                    (Position::default(), state)
                }));
                self.note(|lane| lane.records += count);
            }
            match flights.next().await {
                Some((_, state)) => drop(state?),
                None if left == Left::Nothing => break,
                None => {}
            }
        }
        let end = wire::EndBackfill {
            incarnation: self.incarnation,
            attempt,
            pages,
        };
        self.ship(node, Cargo::EndBackfill(end)).await?;
        Ok(())
    }

    /// The next page of what is left of a backfill: records first, then what is
    /// remembered of identified writes.
    pub(super) fn fill_page(
        &self,
        view: &dyn View,
        left: &mut Left,
    ) -> Result<(Vec<wire::CopiedRecord>, Vec<wire::CopiedOutcomes>)> {
        match left {
            Left::Records(start) => {
                let page = feed::records(
                    view,
                    self.lane.tag.as_str(),
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
        records: Vec<wire::CopiedRecord>,
        outcomes: Vec<wire::CopiedOutcomes>,
    ) -> wire::Backfill {
        wire::Backfill {
            incarnation: self.incarnation,
            attempt,
            page,
            transfer: transfer::of_page(&self.lane.region, self.incarnation, attempt, page),
            from: self.gate.region().to_string(),
            records,
            outcomes,
            policy_version: self.policy_version(),
            sent_ms: self.env.wall_ms(),
        }
    }
}
