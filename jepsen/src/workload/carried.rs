//! Sessions: what a worker did and saw, carried in a token to any node.

use std::time::Duration;

use domicile_client::Token;
use domicile_proto::token::Token as Positions;
use domicile_proto::v1::OnUnmet;

use super::Worker;
use super::way::Fresh;
use crate::history::{Epoch, F, Index, Kind, Level, Meta, Seen, Value};

/// A session of one worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Session {
    /// Its name in the history.
    pub(super) name: String,
    /// What it has done and seen.
    pub(super) token: Token,
}

impl Session {
    /// Learns from the token of an answer.
    pub(super) fn learn(&mut self, token: &Token) {
        // One that cannot be merged is the checker's to find: it stays out.
        if let Ok(merged) = self.token.merge(token) {
            self.token = merged;
        }
    }

    /// The positions in it.
    pub(super) fn seen(&self) -> Vec<Seen> {
        positions(&self.token)
    }
}

/// The positions that a token names.
pub(super) fn positions(token: &Token) -> Vec<Seen> {
    let Ok(token) = Positions::decode(token.as_bytes()) else {
        return Vec::new();
    };
    let positions = token.positions();
    positions
        .map(|(range, position)| Seen {
            range: range.get().to_string(),
            epoch: Epoch(position.epoch.get()),
            index: Index(position.index.get()),
        })
        .collect()
}

impl Worker {
    /// Reads a register at whatever node serves it, not older than what the
    /// session knows.
    pub async fn read_in_session(&mut self, key: &str) {
        let session = self.session().clone();
        let asked = Meta {
            level: Some(Level::AtLeast),
            session: Some(session.name.clone()),
            token: session.seen(),
            ..Meta::default()
        };
        let fresh = Fresh::AtLeast(&session.token);
        let token = self.record_read(key, asked, fresh).await;
        if let Some(token) = token {
            self.session_mut().learn(&token);
        }
    }

    /// Reads a register at whatever node serves it, not older than a bound.
    pub async fn read_bounded(&mut self, key: &str, bound: Duration) {
        let asked = Meta {
            level: Some(Level::Bounded),
            bound_ms: Some(bound.as_millis() as u64),
            ..Meta::default()
        };
        let unmet = match self.next_value() % 3 {
            0 => OnUnmet::Wait,
            1 => OnUnmet::Fail,
            _ => OnUnmet::Forward,
        };
        let fresh = Fresh::Bounded(bound, unmet);
        self.record_read(key, asked, fresh).await;
    }

    /// Sends a read and records it. Answers the token of the answer.
    async fn record_read(&self, key: &str, asked: Meta, fresh: Fresh<'_>) -> Option<Token> {
        let process = self.another();
        let begun = self.begin(process, F::Read, Some(key), Value::Null, asked);
        let asked = begun.asked.clone();
        match self.get(self.tag(), self.key(key), fresh).await {
            Ok(shown) => {
                let meta = Meta {
                    // An answer of the home is strong, whatever was asked for.
                    level: match shown.told.level {
                        domicile_client::Level::Strong => Some(Level::Strong),
                        _ => asked.level,
                    },
                    token: match asked.session {
                        Some(_) => after(&asked.token, &positions(&shown.told.token)),
                        None => Vec::new(),
                    },
                    ..shown.meta(asked)
                };
                begun.ok(Some(shown.value()), meta);
                Some(shown.told.token)
            }
            Err(failed) => {
                begun.failed(Kind::Fail, &failed.reason, asked);
                None
            }
        }
    }
}

/// The positions of a session after an answer: those of the answer, and the
/// carried ones of ranges that it says nothing of.
fn after(carried: &[Seen], answered: &[Seen]) -> Vec<Seen> {
    let mut all = answered.to_vec();
    let silent = |seen: &&Seen| answered.iter().all(|other| other.range != seen.range);
    all.extend(carried.iter().filter(silent).cloned());
    all
}
