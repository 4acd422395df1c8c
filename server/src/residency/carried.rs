//! What a message carries of a tag's records, decided in one place.
//!
//! [`carried`] knows every message that nodes send each other, and matches
//! without a wildcard and with every field named: a message, a variant or a
//! field that is new does not compile until it is decided here what it carries.
//! Nothing passes a gate that [`carried`] does not know.

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use domicile_proto::policy::Kind;
use prost::Message;
use sha2::{Digest, Sha256};
use wire::peer_request::Request;
use wire::peer_response::Response;
use wire::send_snapshot_request::Part;

use crate::storage::GroupId;

/// What a message carries of a tag's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: numbers, names of tags and regions, hashes.
    Nothing,
    /// Bytes of these kinds, which the receiver keeps.
    Kept(&'static [Kind]),
    /// Keys or values, which the receiver handles for a caller and does not
    /// keep.
    Handled,
}

/// Of which tag a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of<'m> {
    /// Of the tag that it names.
    Tag(&'m str),
    /// Of the tag of the group that it names.
    Group(GroupId),
    /// Of the tag of the exchange that it belongs to: an answer or a part of a
    /// snapshot names none.
    Exchange,
    /// Of none, or of several.
    NoTag,
}

/// What a message carries, and of which tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried<'m> {
    /// What.
    pub content: Content,
    /// Of which tag.
    pub of: Of<'m>,
}

/// Any message that one node sends another.
#[derive(Clone, Copy, Debug)]
pub enum Crossing<'m> {
    /// A request on the stream.
    Request(&'m wire::PeerRequest),
    /// The answer to one.
    Response(&'m wire::PeerResponse),
    /// A part of a snapshot.
    SnapshotPart(&'m wire::SendSnapshotRequest),
    /// The answer to all of them.
    SnapshotTaken(&'m wire::SendSnapshotResponse),
    /// Takes a node into a cluster.
    Form(&'m wire::FormRequest),
    /// The answer to that.
    Formed(&'m wire::FormResponse),
    /// Starts a replica.
    Place(&'m wire::PlaceRequest),
    /// The answer to that.
    Placed(&'m wire::PlaceResponse),
    /// Exchanges a member of a group.
    Replace(&'m wire::ReplaceMemberRequest),
    /// The answer to that.
    Replaced(&'m wire::ReplaceMemberResponse),
}

/// A message that nodes send each other.
pub trait Carries: Message {
    /// The message, among all that there are.
    fn crossing(&self) -> Crossing<'_>;

    /// Says in the message by which policy version its sender let it pass, where
    /// it has room for that. A receiver that is behind waits.
    fn passed_by(&mut self, _policy_version: u64) {}
}

impl Carries for wire::PeerRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Request(self)
    }

    fn passed_by(&mut self, policy_version: u64) {
        if let Some(Request::Ship(ship)) = &mut self.request {
            ship.policy_version = policy_version;
        }
    }
}

impl Carries for wire::PeerResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Response(self)
    }
}

impl Carries for wire::SendSnapshotRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::SnapshotPart(self)
    }
}

impl Carries for wire::SendSnapshotResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::SnapshotTaken(self)
    }
}

impl Carries for wire::FormRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Form(self)
    }
}

impl Carries for wire::FormResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Formed(self)
    }
}

impl Carries for wire::PlaceRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Place(self)
    }
}

impl Carries for wire::PlaceResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Placed(self)
    }
}

impl Carries for wire::ReplaceMemberRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Replace(self)
    }
}

impl Carries for wire::ReplaceMemberResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Replaced(self)
    }
}

/// What a message carries, and of which tag.
pub fn carried(message: Crossing<'_>) -> Carried<'_> {
    match message {
        Crossing::Request(request) => of_request(request),
        Crossing::Response(response) => of_response(response),
        Crossing::SnapshotPart(part) => of_part(part),
        Crossing::SnapshotTaken(wire::SendSnapshotResponse { vote: _ }) => {
            Content::Nothing.of(Of::Exchange)
        }
        // Where groups are, and of which tags.
        Crossing::Form(wire::FormRequest {
            catalog: _,
            node: _,
            control: _,
            step: _,
            hello: _,
            token: _,
        })
        | Crossing::Formed(wire::FormResponse {
            formed: _,
            earlier: _,
        })
        | Crossing::Place(wire::PlaceRequest {
            cluster: _,
            region: _,
            node: _,
            group: _,
            nodes: _,
            replica: _,
            regions: _,
            hello: _,
        })
        | Crossing::Placed(wire::PlaceResponse {
            replica: _,
            knows_policy: _,
            incarnation: _,
            disk_full: _,
            applied: _,
            address: _,
        })
        | Crossing::Replace(wire::ReplaceMemberRequest {
            hello: _,
            group: _,
            new_replica: _,
            new_node: _,
            address: _,
            keeps_store: _,
        })
        | Crossing::Replaced(wire::ReplaceMemberResponse {}) => Content::Nothing.of(Of::NoTag),
    }
}

/// What is kept of a message that was refused, so that it can be told from others:
/// never a hash that a record could be guessed by. Of a batch: the hash of the
/// digest that both ends' ledgers have of it.
pub(super) fn evidence(crossing: Crossing<'_>) -> Bytes {
    if let Crossing::Request(wire::PeerRequest {
        request: Some(Request::Ship(ship)),
        ..
    }) = crossing
        && !ship.digest.is_empty()
    {
        // Hashed: it is the sender's word, and may be anything.
        return Bytes::copy_from_slice(&Sha256::digest(&ship.digest));
    }
    let mut hash = Sha256::new();
    match (carried(crossing).content, crossing) {
        (Content::Nothing, Crossing::Request(request)) => hash.update(request.encode_to_vec()),
        (_, Crossing::Request(request)) => {
            for number in [request.sequence, request.group, request.to_replica] {
                hash.update(number.to_be_bytes());
            }
        }
        (_, Crossing::Response(response)) => hash.update(response.sequence.to_be_bytes()),
        _ => {}
    }
    Bytes::copy_from_slice(&hash.finalize())
}

impl Content {
    fn of(self, of: Of<'_>) -> Carried<'_> {
        Carried { content: self, of }
    }
}

fn of_request(request: &wire::PeerRequest) -> Carried<'_> {
    let wire::PeerRequest {
        sequence: _,
        group,
        to_replica: _,
        request,
    } = request;
    let group = Of::Group(GroupId(*group));
    match request {
        None => Content::Nothing.of(group),
        Some(Request::Append(wire::Append {
            vote: _,
            prev: _,
            entries,
            commit: _,
            pipeline: _,
            acknowledged: _,
            quorum_ms: _,
        })) => match entries.is_empty() {
            true => Content::Nothing.of(group),
            false => Content::Kept(&[Kind::LogEntry]).of(group),
        },
        Some(
            Request::Vote(wire::RequestVote {
                vote: _,
                last: _,
                transfer: _,
            })
            | Request::PreVote(wire::RequestVote {
                vote: _,
                last: _,
                transfer: _,
            })
            | Request::Transfer(wire::TransferLeader {
                vote: _,
                to: _,
                last: _,
            })
            | Request::ReadIndex(wire::ReadIndex {})
            | Request::Digest(wire::Digest {}),
        ) => Content::Nothing.of(group),
        Some(Request::Probe(wire::Probe { ranges: _ })) => Content::Nothing.of(Of::NoTag),
        Some(Request::Forward(wire::Forward {
            writes: _,
            tag,
            caller: _,
        })) => Content::Kept(&[Kind::Key, Kind::Value]).of(Of::Tag(tag)),
        Some(Request::Ship(ship)) => of_ship(ship),
        Some(Request::Read(wire::Read {
            tag,
            what: _,
            token: _,
            caller: _,
        })) => Content::Handled.of(Of::Tag(tag)),
    }
}

fn of_ship(ship: &wire::Ship) -> Carried<'_> {
    use wire::ship::Cargo as Shipped;
    let wire::Ship {
        tag,
        epoch: _,
        policy_version: _,
        cargo,
        digest: _,
    } = ship;
    let cargo = match cargo {
        Some(Shipped::Copy(_) | Shipped::Backfill(_)) => {
            Content::Kept(&[Kind::Key, Kind::Value, Kind::Tombstone, Kind::LogEntry])
        }
        // They empty and open what the region holds: only under the lease, and
        // only where the tag may be.
        Some(
            Shipped::BeginBackfill(wire::BeginBackfill {
                incarnation: _,
                seen_attempt: _,
                seen_open: _,
                attempt: _,
                position: _,
                changed_version: _,
            })
            | Shipped::EndBackfill(wire::EndBackfill {
                incarnation: _,
                attempt: _,
                pages: _,
            }),
        ) => Content::Kept(&[Kind::LogEntry]),
        Some(Shipped::TagKeys(wire::CopyTagKeys {
            incarnation: _,
            keys: _,
        })) => Content::Kept(&[Kind::TagKey, Kind::LogEntry]),
        // It opens a session: where records may not go now, none begins.
        Some(Shipped::Ask(wire::ShipAsk {})) => Content::Kept(&[Kind::LogEntry]),
        None => Content::Nothing,
    };
    cargo.of(Of::Tag(tag))
}

fn of_response(response: &wire::PeerResponse) -> Carried<'_> {
    let wire::PeerResponse {
        sequence: _,
        response,
    } = response;
    let cargo = match response {
        None => Content::Nothing,
        Some(
            Response::Append(wire::AppendResult { result: _ })
            | Response::Vote(wire::VoteResult {
                vote: _,
                granted: _,
                last: _,
            })
            | Response::Transfer(wire::TransferResult { refused: _ })
            | Response::ReadIndex(wire::ReadIndexResult {
                index: _,
                leader: _,
            })
            | Response::Refusal(wire::Refusal { why: _, reason: _ })
            | Response::Digest(wire::DigestResult {
                applied: _,
                digest: _,
                rows: _,
            })
            | Response::Ship(wire::ShipResult { result: _ })
            | Response::Probe(wire::ProbeResult { ranges: _ }),
        ) => Content::Nothing,
        // What came of writes tells of their records: that they were there, and
        // their versions.
        Some(
            Response::Forward(wire::ForwardResult {
                outcomes: _,
                token: _,
            })
            | Response::Read(wire::ReadResult { result: _ }),
        ) => Content::Handled,
    };
    cargo.of(Of::Exchange)
}

fn of_part(part: &wire::SendSnapshotRequest) -> Carried<'_> {
    let wire::SendSnapshotRequest { part } = part;
    // The end too: it puts what is staged in the place of what is there.
    let snapshot = Content::Kept(&[Kind::Snapshot, Kind::Staged]);
    match part {
        None => Content::Nothing.of(Of::Exchange),
        Some(Part::Start(wire::SnapshotStart {
            hello: _,
            to_replica: _,
            vote: _,
            head,
        })) => snapshot.of(of_head(head.as_ref())),
        Some(
            Part::Chunk(wire::SnapshotChunk {
                number: _,
                rows: _,
                crc: _,
            })
            | Part::End(wire::SnapshotEnd { chunks: _, rows: _ }),
        ) => snapshot.of(Of::Exchange),
    }
}

fn of_head(head: Option<&wire::SnapshotHead>) -> Of<'_> {
    let Some(wire::SnapshotHead {
        group,
        incarnation: _,
        tag,
        last: _,
        membership: _,
        level: _,
        span: _,
    }) = head
    else {
        return Of::NoTag;
    };
    // The region's and the control group have none.
    match tag.is_empty() {
        true => Of::Group(GroupId(*group)),
        false => Of::Tag(tag),
    }
}
