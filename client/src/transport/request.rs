//! Request ids: what makes it safe to send a write again.
//!
//! The home of a tag registers a client and gives it its id; a write with an id
//! that the home has seen is answered with the outcome of the first attempt.
//! Its memory of outcomes ends at `acked_below`, so that number must not pass
//! a write that may still be sent again. A client that wrote nothing for long
//! may be forgotten; then it registers again.

use std::collections::VecDeque;
use std::sync::Arc;

use domicile_proto::limits::OUTCOMES_PER_CLIENT_MAX;
use domicile_proto::v1;
use parking_lot::Mutex;

use crate::request_id::RequestId;

/// How far a write without an answer may lie behind the newest write before it
/// is given up: as far as servers remember.
const UNANSWERED_DISTANCE_MAX: u64 = OUTCOMES_PER_CLIENT_MAX as u64;

/// Hands out request ids of one registration and knows which have their answer.
#[derive(Debug)]
pub(crate) struct Requests {
    /// The id of the client.
    client: [u8; 16],
    /// Which writes are open.
    window: Mutex<Window>,
}

/// The writes from the oldest without an answer to the newest.
#[derive(Debug)]
struct Window {
    /// The sequence of the first state.
    acked_below: u64,
    /// One for each sequence from `acked_below` on.
    states: VecDeque<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Being sent.
    Open,
    /// Given up; the caller may send it again.
    Unanswered,
    /// Has its answer.
    Answered,
}

impl Requests {
    /// The ids of a client from this one on.
    pub(crate) fn of(first: RequestId) -> Self {
        Requests {
            client: *first.client(),
            window: Mutex::new(Window {
                acked_below: 1,
                states: VecDeque::new(),
            }),
        }
    }

    /// The next id. A guard dropped without a word belongs to a caller that
    /// went away: it does not know the id, and asks no more.
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        let mut window = self.window.lock();
        let sequence = window.acked_below + window.states.len() as u64;
        window.states.push_back(State::Open);
        window.advance();
        Open {
            requests: Some(self.clone()),
            id: RequestId::new(self.client, sequence),
            acked_below: window.acked_below,
            end: State::Answered,
        }
    }

    /// An id of before, to send its write again. A guard dropped without a word
    /// leaves it as it was. Of another client's ids nothing is known here, so
    /// nothing is declared answered.
    pub(crate) fn reopen(self: &Arc<Self>, id: RequestId) -> Open {
        if *id.client() != self.client {
            return Open::foreign(id);
        }
        let mut window = self.window.lock();
        window.set(id.sequence(), State::Open);
        Open {
            requests: Some(self.clone()),
            id,
            acked_below: window.acked_below,
            end: State::Unanswered,
        }
    }
}

impl Window {
    /// Notes the state of a write, unless it is answered already.
    fn set(&mut self, sequence: u64, state: State) {
        let at = sequence.checked_sub(self.acked_below);
        let at = at.and_then(|at| usize::try_from(at).ok());
        if let Some(entry) = at.and_then(|at| self.states.get_mut(at)) {
            *entry = state;
        }
        self.advance();
    }

    /// Passes what has its answer, and what is unknown for too long.
    fn advance(&mut self) {
        while let Some(state) = self.states.front() {
            let distant = self.states.len() as u64 > UNANSWERED_DISTANCE_MAX;
            match state {
                State::Answered => {}
                State::Unanswered if distant => {}
                State::Open | State::Unanswered => return,
            }
            self.states.pop_front();
            self.acked_below += 1;
        }
    }
}

/// A write without an answer.
#[derive(Debug)]
pub(crate) struct Open {
    /// Of which registration here; `None`: it is of another client.
    requests: Option<Arc<Requests>>,
    id: RequestId,
    acked_below: u64,
    end: State,
}

impl Open {
    /// A write of another client, of which nothing is known here.
    pub(crate) fn foreign(id: RequestId) -> Self {
        Open {
            requests: None,
            id,
            acked_below: 0,
            end: State::Unanswered,
        }
    }

    /// The id for the caller.
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    /// The id for the wire.
    pub(crate) fn to_proto(&self) -> v1::RequestId {
        v1::RequestId {
            client: bytes::Bytes::copy_from_slice(self.id.client()),
            sequence: self.id.sequence(),
            acked_below: self.acked_below,
        }
    }

    /// It has its answer.
    pub(crate) fn answered(mut self) {
        self.end = State::Answered;
    }

    /// The caller may send it again: nobody knows what came of it, or it is
    /// still to wait.
    pub(crate) fn unanswered(mut self) {
        self.end = State::Unanswered;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(requests) = &self.requests {
            requests.window.lock().set(self.id.sequence(), self.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The requests of a client of this number.
    fn requests(client: u8) -> Arc<Requests> {
        let first = RequestId::first(&[client; 16]).expect("16 bytes");
        Arc::new(Requests::of(first))
    }

    #[test]
    fn acked_below_stops_at_the_oldest_open_write() {
        let requests = requests(1);
        let first = requests.open();
        let second = requests.open();
        assert_eq!((first.id.sequence(), second.id.sequence()), (1, 2));
        drop(second);
        assert_eq!(requests.open().acked_below, 1);
        drop(first);
        assert_eq!(requests.open().acked_below, 4);
    }

    #[test]
    fn an_unknown_write_is_held_until_it_is_answered() {
        let requests = requests(1);
        let lost = requests.open();
        let id = lost.id();
        lost.unanswered();
        assert_eq!(requests.open().acked_below, 1);
        let again = requests.reopen(id);
        assert_eq!(again.acked_below, 1);
        // Whoever asked went away, and may ask once more.
        drop(again);
        assert_eq!(requests.open().acked_below, 1);
        requests.reopen(id).answered();
        assert_eq!(requests.open().acked_below, 4);
    }

    #[test]
    fn an_unknown_write_is_not_held_for_ever() {
        let requests = requests(1);
        requests.open().unanswered();
        for _ in 0..UNANSWERED_DISTANCE_MAX {
            drop(requests.open());
        }
        assert!(requests.open().acked_below > 1);
        assert!(requests.window.lock().states.len() < 2);
    }

    #[test]
    fn ids_of_others_declare_nothing_answered() {
        let requests = requests(1);
        let theirs = RequestId::first(&[2; 16]).expect("16 bytes");
        assert_eq!(requests.reopen(theirs).to_proto().acked_below, 0);
    }
}
