//! What is heard of another node, and since when nothing is.
//!
//! A node says once a second on each connection how it is. One that stops
//! saying so is not reached, though its connection may stay open for long: its
//! process hangs, or packets vanish on the way.

use std::time::Duration;

use domicile_proto::peer::v1 as peer;
use parking_lot::Mutex;

use crate::env::Instant;
use crate::error::{Error, Reason};
use crate::storage::Condition;

/// How often a node says how it is.
pub const STATE_STEP: Duration = Duration::from_secs(1);

/// A node of which nothing was heard for this long is not reached.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(3);

/// What is heard of one node.
pub(super) struct Contact(Mutex<Heard>);

struct Heard {
    /// Whether it has answered the hello of a connection that is still open.
    connected: bool,
    /// Whether its build says how it is.
    tells: bool,
    /// When something came from it last; before that, since when it is looked
    /// for.
    at: Instant,
    /// Why it refused to be spoken to, the last time.
    refusal: Option<(Reason, String)>,
    /// How it was when it last said so.
    state: Option<peer::NodeState>,
}

impl Heard {
    fn is_reached(&self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.at);
        // Builds that do not say how they are may have nothing to say for long.
        self.connected && (!self.tells || silent <= SILENT_AFTER)
    }
}

/// What is known of whether a node is reached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reach {
    /// For how long it has not been reached; `None`: it is.
    pub unreached: Option<Duration>,
    /// What answers at its address instead, in a sentence.
    pub why: Option<String>,
    /// Whether what answers there is the node, with an empty store.
    pub is_empty: bool,
    /// How it says that it is; `None`: it is not reached, or does not say.
    pub state: Option<peer::NodeState>,
}

impl Contact {
    /// A node that is looked for from now on.
    pub(super) fn new(now: Instant) -> Self {
        Contact(Mutex::new(Heard {
            connected: false,
            tells: false,
            at: now,
            refusal: None,
            state: None,
        }))
    }

    /// It has answered the hello.
    pub(super) fn connected(&self, now: Instant) {
        let mut heard = self.0.lock();
        (heard.connected, heard.tells, heard.at) = (true, false, now);
        (heard.refusal, heard.state) = (None, None);
    }

    /// Something came from it, and with it perhaps how it is.
    pub(super) fn hear(&self, now: Instant, state: Option<peer::NodeState>) {
        let mut heard = self.0.lock();
        heard.at = now;
        if let Some(state) = state {
            heard.state = Some(state);
            heard.tells = true;
        }
    }

    /// The connection has ended.
    pub(super) fn lost(&self) {
        self.0.lock().connected = false;
    }

    /// Something answers at its address and refuses; `None`: nothing answers.
    pub(super) fn refused(&self, why: Option<&Error>) {
        self.0.lock().refusal = why.map(|why| (why.reason, why.message.clone()));
    }

    /// What it says of its disk, for who asks with every write; `None`: it is not
    /// reached.
    pub(super) fn condition(&self, now: Instant) -> Option<Condition> {
        let heard = self.0.lock();
        let said = heard.state.as_ref().map(Condition::of);
        heard.is_reached(now).then_some(said.unwrap_or_default())
    }

    /// Whether it is reached now.
    pub(super) fn reach(&self, now: Instant) -> Reach {
        let heard = self.0.lock();
        let silent = now.saturating_duration_since(heard.at);
        match heard.is_reached(now) {
            true => Reach {
                state: heard.state.clone(),
                ..Reach::default()
            },
            false => Reach {
                unreached: Some(silent),
                why: heard.refusal.as_ref().map(|(_, why)| why.clone()),
                is_empty: matches!(heard.refusal, Some((Reason::NotFormed, _))),
                state: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    #[test]
    fn a_node_that_says_nothing_is_not_reached_though_its_connection_is_open() {
        let began = Env::real().now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let unreached = |contact: &Contact, at| contact.reach(after(at)).unreached;
        let contact = Contact::new(began);
        assert_eq!(unreached(&contact, 7), Some(Duration::from_secs(7)));
        let refused = Error::new(Reason::UnknownNode, "another node is there");
        contact.refused(Some(&refused));
        let why = contact.reach(after(8)).why;
        assert_eq!(why.as_deref(), Some("another node is there"));

        contact.connected(after(10));
        assert_eq!(contact.reach(after(10)), Reach::default());
        // A build that never says how it is.
        assert_eq!(unreached(&contact, 99), None);
        contact.hear(after(100), Some(peer::NodeState::default()));
        assert_eq!(unreached(&contact, 103), None);
        assert!(contact.reach(after(103)).state.is_some());
        assert_eq!(unreached(&contact, 104), Some(Duration::from_secs(4)));
        assert_eq!(contact.reach(after(104)).state, None);
        // Any answer shows that it lives.
        contact.hear(after(105), None);
        assert_eq!(unreached(&contact, 106), None);
        contact.lost();
        assert_eq!(unreached(&contact, 106), Some(Duration::from_secs(1)));
    }
}
