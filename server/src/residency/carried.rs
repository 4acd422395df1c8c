//! What a message carries of a tag's records, decided in one place.
//!
//! [`carried`] knows every message that nodes send each other, and matches
//! without a wildcard and with every field named: a message, a variant or a
//! field that is new does not compile until it is decided here what it carries.
//! Nothing passes a gate that [`carried`] does not know.

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use domicile_proto::policy::Kind;
use peer::peer_request::Request;
use peer::peer_response::Response;
use peer::send_snapshot_request::Part;
use prost::Message;
use sha2::{Digest, Sha256};

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
    Request(&'m peer::PeerRequest),
    /// The answer to one.
    Response(&'m peer::PeerResponse),
    /// A part of a snapshot.
    SnapshotPart(&'m peer::SendSnapshotRequest),
    /// The answer to all of them.
    SnapshotTaken(&'m peer::SendSnapshotResponse),
    /// Takes a node into a cluster.
    Form(&'m peer::FormRequest),
    /// The answer to that.
    Formed(&'m peer::FormResponse),
    /// Starts a replica.
    Place(&'m peer::PlaceRequest),
    /// The answer to that.
    Placed(&'m peer::PlaceResponse),
    /// Exchanges a member of a group.
    Replace(&'m peer::ReplaceMemberRequest),
    /// The answer to that.
    Replaced(&'m peer::ReplaceMemberResponse),
}

/// A message that nodes send each other.
pub trait Carries: Message {
    /// The message, among all that there are.
    fn crossing(&self) -> Crossing<'_>;

    /// Says in the message by which policy version its sender let it pass, where
    /// it has room for that. A receiver that is behind waits.
    fn passed_by(&mut self, _policy_version: u64) {}
}

impl Carries for peer::PeerRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Request(self)
    }

    fn passed_by(&mut self, policy_version: u64) {
        if let Some(Request::Ship(ship)) = &mut self.request {
            ship.policy_version = policy_version;
        }
    }
}

impl Carries for peer::PeerResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Response(self)
    }
}

impl Carries for peer::SendSnapshotRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::SnapshotPart(self)
    }
}

impl Carries for peer::SendSnapshotResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::SnapshotTaken(self)
    }
}

impl Carries for peer::FormRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Form(self)
    }
}

impl Carries for peer::FormResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Formed(self)
    }
}

impl Carries for peer::PlaceRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Place(self)
    }
}

impl Carries for peer::PlaceResponse {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Placed(self)
    }
}

impl Carries for peer::ReplaceMemberRequest {
    fn crossing(&self) -> Crossing<'_> {
        Crossing::Replace(self)
    }
}

impl Carries for peer::ReplaceMemberResponse {
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
        Crossing::SnapshotTaken(peer::SendSnapshotResponse { vote: _ }) => {
            Content::Nothing.of(Of::Exchange)
        }
        // Where groups are, and of which tags.
        Crossing::Form(peer::FormRequest {
            catalog: _,
            node: _,
            control: _,
            step: _,
            hello: _,
            token: _,
        })
        | Crossing::Formed(peer::FormResponse {
            formed: _,
            earlier: _,
        })
        | Crossing::Place(peer::PlaceRequest {
            cluster: _,
            region: _,
            node: _,
            group: _,
            nodes: _,
            replica: _,
            regions: _,
            hello: _,
        })
        | Crossing::Placed(peer::PlaceResponse {
            replica: _,
            knows_policy: _,
            incarnation: _,
            disk_full: _,
            applied: _,
            address: _,
        })
        | Crossing::Replace(peer::ReplaceMemberRequest {
            hello: _,
            group: _,
            new_replica: _,
            new_node: _,
            address: _,
            keeps_store: _,
        })
        | Crossing::Replaced(peer::ReplaceMemberResponse {}) => Content::Nothing.of(Of::NoTag),
    }
}

/// What is kept of a message that was refused, so that it can be told from others:
/// never a hash that a record could be guessed by. Of a batch: the hash of the
/// digest that both ends' ledgers have of it.
pub(super) fn evidence(crossing: Crossing<'_>) -> Bytes {
    if let Crossing::Request(peer::PeerRequest {
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

fn of_request(request: &peer::PeerRequest) -> Carried<'_> {
    let peer::PeerRequest {
        sequence: _,
        group,
        to_replica: _,
        request,
    } = request;
    let group = Of::Group(GroupId(*group));
    match request {
        None => Content::Nothing.of(group),
        Some(Request::Append(peer::Append {
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
            Request::Vote(peer::RequestVote {
                vote: _,
                last: _,
                transfer: _,
            })
            | Request::PreVote(peer::RequestVote {
                vote: _,
                last: _,
                transfer: _,
            })
            | Request::Transfer(peer::TransferLeader {
                vote: _,
                to: _,
                last: _,
            })
            | Request::ReadIndex(peer::ReadIndex {})
            | Request::Digest(peer::Digest {}),
        ) => Content::Nothing.of(group),
        Some(Request::Probe(peer::Probe { ranges: _ })) => Content::Nothing.of(Of::NoTag),
        Some(Request::Forward(peer::Forward {
            writes: _,
            tag,
            caller: _,
        })) => Content::Kept(&[Kind::Key, Kind::Value]).of(Of::Tag(tag)),
        Some(Request::Ship(ship)) => of_ship(ship),
        Some(Request::Read(peer::Read {
            tag,
            what: _,
            token: _,
            caller: _,
        })) => Content::Handled.of(Of::Tag(tag)),
    }
}

fn of_ship(ship: &peer::Ship) -> Carried<'_> {
    use peer::ship::Cargo as Shipped;
    let peer::Ship {
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
            Shipped::BeginBackfill(disk::BeginBackfill {
                incarnation: _,
                seen_attempt: _,
                seen_open: _,
                attempt: _,
                position: _,
                changed_version: _,
            })
            | Shipped::EndBackfill(disk::EndBackfill {
                incarnation: _,
                attempt: _,
                pages: _,
            }),
        ) => Content::Kept(&[Kind::LogEntry]),
        Some(Shipped::TagKeys(disk::CopyTagKeys {
            incarnation: _,
            keys: _,
        })) => Content::Kept(&[Kind::TagKey, Kind::LogEntry]),
        // It opens a session: where records may not go now, none begins.
        Some(Shipped::Ask(peer::ShipAsk {})) => Content::Kept(&[Kind::LogEntry]),
        None => Content::Nothing,
    };
    cargo.of(Of::Tag(tag))
}

fn of_response(response: &peer::PeerResponse) -> Carried<'_> {
    let peer::PeerResponse {
        sequence: _,
        response,
    } = response;
    let cargo = match response {
        None => Content::Nothing,
        Some(
            Response::Append(peer::AppendResult { result: _ })
            | Response::Vote(peer::VoteResult {
                vote: _,
                granted: _,
                last: _,
            })
            | Response::Transfer(peer::TransferResult { refused: _ })
            | Response::ReadIndex(peer::ReadIndexResult {
                index: _,
                leader: _,
            })
            | Response::Refusal(peer::Refusal { why: _, reason: _ })
            | Response::Digest(peer::DigestResult {
                applied: _,
                digest: _,
                rows: _,
            })
            | Response::Ship(peer::ShipResult { result: _ })
            | Response::Probe(peer::ProbeResult { ranges: _ }),
        ) => Content::Nothing,
        // What came of writes tells of their records: that they were there, and
        // their versions.
        Some(
            Response::Forward(peer::ForwardResult {
                outcomes: _,
                token: _,
            })
            | Response::Read(peer::ReadResult { result: _ }),
        ) => Content::Handled,
    };
    cargo.of(Of::Exchange)
}

fn of_part(part: &peer::SendSnapshotRequest) -> Carried<'_> {
    let peer::SendSnapshotRequest { part } = part;
    // The end too: it puts what is staged in the place of what is there.
    let snapshot = Content::Kept(&[Kind::Snapshot, Kind::Staged]);
    match part {
        None => Content::Nothing.of(Of::Exchange),
        Some(Part::Start(peer::SnapshotStart {
            hello: _,
            to_replica: _,
            vote: _,
            head,
        })) => snapshot.of(of_head(head.as_ref())),
        Some(
            Part::Chunk(peer::SnapshotChunk {
                number: _,
                rows: _,
                crc: _,
            })
            | Part::End(peer::SnapshotEnd { chunks: _, rows: _ }),
        ) => snapshot.of(Of::Exchange),
    }
}

fn of_head(head: Option<&disk::SnapshotHead>) -> Of<'_> {
    let Some(disk::SnapshotHead {
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
