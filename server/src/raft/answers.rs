//! What is answered to the requests of one connection.
//!
//! An answer passes the gate as a request does: when it is made, and again when
//! it is framed. What may not go is answered with a refusal, so that nobody
//! waits for it.

use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::peer::v1 as peer;
use peer::peer_response::Response;
use tokio::sync::mpsc;

use crate::error::{Error, Reason, Result};
use crate::residency::{Cleared, Gate};
use crate::state::Subject;

/// Where the answers to the requests of one connection go. Clones are the same.
#[derive(Clone)]
pub struct Answers {
    gate: Arc<Gate>,
    to: RegionName,
    // Unbounded because each answers one request, and the sender bounds its
    // requests.
    queue: mpsc::UnboundedSender<Cleared<peer::PeerResponse>>,
}

impl Answers {
    /// Nothing is answered yet to a node of region `to`.
    pub fn new(gate: Arc<Gate>, to: RegionName) -> (Self, Answered) {
        let (queue, waiting) = mpsc::unbounded_channel();
        let answered = Answered {
            gate: gate.clone(),
            to: to.clone(),
            waiting,
        };
        (Answers { gate, to, queue }, answered)
    }

    /// Answers a request about `subject`.
    pub fn send(&self, subject: &Subject, sequence: u64, response: Response) {
        match self.clear(subject, sequence, response) {
            Ok(cleared) => self.put(cleared),
            Err(refusal) => self.refuse(sequence, refusal),
        }
    }

    /// Has the gate let an answer pass; an error is what is to be said instead.
    pub fn clear(
        &self,
        subject: &Subject,
        sequence: u64,
        response: Response,
    ) -> Result<Cleared<peer::PeerResponse>, peer::Refusal> {
        let may_be_done = may_be_done(&response);
        let response = peer::PeerResponse {
            sequence,
            response: Some(response),
        };
        let cleared = self.gate.egress(&self.to, subject, response);
        cleared.map_err(|refused| instead(may_be_done, &refused))
    }

    /// Puts an answer behind the others.
    pub fn put(&self, cleared: Cleared<peer::PeerResponse>) {
        // The connection may have gone; then nobody waits.
        drop(self.queue.send(cleared));
    }

    /// Refuses a request.
    pub fn refuse(&self, sequence: u64, refusal: peer::Refusal) {
        let response = peer::PeerResponse {
            sequence,
            response: Some(Response::Refusal(refusal)),
        };
        // A refusal bears nothing and is about no tag, so it always passes.
        if let Ok(cleared) = self.gate.egress(&self.to, &Subject::Control, response) {
            self.put(cleared);
        }
    }
}

/// The answers that wait for a connection.
pub struct Answered {
    gate: Arc<Gate>,
    to: RegionName,
    waiting: mpsc::UnboundedReceiver<Cleared<peer::PeerResponse>>,
}

impl Answered {
    /// Waits for answers and takes some; none: there will be no more.
    pub async fn some(&mut self, most: usize) -> Vec<Cleared<peer::PeerResponse>> {
        let mut some = Vec::new();
        self.waiting.recv_many(&mut some, most).await;
        some
    }

    /// Gives an answer to the wire, or what is said instead of one that may not
    /// leave any more.
    pub fn frame(&self, cleared: Cleared<peer::PeerResponse>) -> peer::PeerResponse {
        let answer = cleared.message();
        let sequence = answer.sequence;
        let may_be_done = answer.response.as_ref().is_some_and(may_be_done);
        self.gate
            .frame(cleared, &self.to)
            .unwrap_or_else(|refused| peer::PeerResponse {
                sequence,
                response: Some(Response::Refusal(instead(may_be_done, &refused))),
            })
    }
}

/// Whether an answer tells of something that was done: to refuse it must not
/// look as if it was not.
fn may_be_done(response: &Response) -> bool {
    matches!(response, Response::Forward(_))
}

/// What is said instead of an answer that the gate refused.
fn instead(may_be_done: bool, refused: &Error) -> peer::Refusal {
    let refusal = peer::Refusal::from(refused);
    match may_be_done {
        true => peer::Refusal {
            reason: Reason::WriteOutcomeUnknown.name().into(),
            ..refusal
        },
        false => refusal,
    }
}

#[cfg(test)]
mod tests {
    use domicile_proto::address::Tag;

    use super::*;
    use crate::policy::LEASE;
    use crate::raft::testing::Alone;

    /// Two answers that a node of `eu` has for one of another region.
    const ANSWERS: [fn() -> Response; 2] = [
        || Response::Read(peer::ReadResult::default()),
        || Response::Forward(peer::ForwardResult::default()),
    ];

    fn reason(answer: peer::PeerResponse) -> String {
        match answer.response {
            Some(Response::Refusal(refusal)) => refusal.reason,
            other => format!("{other:?}"),
        }
    }

    /// What was read must not leave any more, and what was written must not look
    /// as if it was not.
    #[tokio::test(start_paused = true)]
    async fn an_answer_passes_the_gate_as_a_request_does() {
        let node = Alone::new("eu");
        node.adopt_demo();
        let [eu_only, global] =
            ["eu-only", "global"].map(|tag| Subject::Tag(Tag::new(tag).expect("a tag")));
        let us = RegionName::new("us").expect("a name");
        let (answers, mut answered) = Answers::new(node.gate.clone(), us);
        let refused = ["NO_QUORUM", "WRITE_OUTCOME_UNKNOWN"];
        // Without the lease.
        for (answer, refused) in ANSWERS.into_iter().zip(refused) {
            answers.send(&global, 7, answer());
            let told = answered.some(9).await.remove(0);
            assert_eq!(told.message().sequence, 7);
            assert_eq!(reason(answered.frame(told)), refused);
        }
        node.gate.policy().lease().confirm(node.env.now());
        for (answer, refused) in ANSWERS
            .into_iter()
            .zip(["RESIDENCY_VIOLATION", "WRITE_OUTCOME_UNKNOWN"])
        {
            answers.send(&eu_only, 7, answer());
            let told = answered.some(9).await.remove(0);
            assert_eq!(reason(answered.frame(told)), refused);
        }
        for answer in ANSWERS {
            answers.send(&global, 7, answer());
            let told = answered.some(9).await.remove(0);
            assert_eq!(answered.frame(told).response, Some(answer()));
        }
        // While they wait for the connection.
        for answer in ANSWERS {
            answers.send(&global, 7, answer());
        }
        tokio::time::sleep(LEASE).await;
        let waited = answered.some(9).await;
        assert_eq!(waited.len(), 2);
        for (told, refused) in waited.into_iter().zip(refused) {
            assert_eq!(reason(answered.frame(told)), refused);
        }
        let counted = node.gate.refusals().into_values();
        assert_eq!(counted.map(|evidence| evidence.count).sum::<u64>(), 6);
    }
}
