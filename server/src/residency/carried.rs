//! What a message carries, decided in one place.

use domicile_proto::internal::v1 as wire;
use domicile_proto::policy::Kind;
use wire::peer_request::Request;
use wire::peer_response::Response;

/// What a message carries of a tag's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cargo {
    /// Nothing: numbers, names of tags and regions, hashes.
    Nothing,
    /// Bytes of these kinds, which the receiver keeps.
    Kept(&'static [Kind]),
    /// Keys or values, which the receiver handles for a caller and does not
    /// keep.
    Handled,
}

/// A message that nodes send each other.
pub trait Carries: prost::Message {
    /// What it carries.
    fn cargo(&self) -> Cargo;
}

impl Carries for wire::PeerRequest {
    // No wildcard: whoever adds a request decides here what it carries.
    fn cargo(&self) -> Cargo {
        match &self.request {
            Some(Request::Append(append)) if append.entries.is_empty() => Cargo::Nothing,
            Some(Request::Append(_)) => Cargo::Kept(&[Kind::LogEntry]),
            Some(
                Request::Vote(_)
                | Request::PreVote(_)
                | Request::Transfer(_)
                | Request::ReadIndex(_)
                | Request::Digest(_)
                | Request::Probe(_),
            )
            | None => Cargo::Nothing,
            Some(Request::Forward(_)) => Cargo::Kept(&[Kind::Key, Kind::Value]),
            Some(Request::Ship(ship)) => match ship.cargo {
                Some(wire::ship::Cargo::Copy(_) | wire::ship::Cargo::Backfill(_)) => {
                    Cargo::Kept(&[Kind::Key, Kind::Value, Kind::Tombstone, Kind::LogEntry])
                }
                // They empty and open what the region holds: only under the
                // lease, and only where the tag may be.
                Some(wire::ship::Cargo::BeginBackfill(_) | wire::ship::Cargo::EndBackfill(_)) => {
                    Cargo::Kept(&[Kind::LogEntry])
                }
                Some(wire::ship::Cargo::Ask(_)) | None => Cargo::Nothing,
            },
            Some(Request::Read(_)) => Cargo::Handled,
        }
    }
}

impl Carries for wire::PeerResponse {
    fn cargo(&self) -> Cargo {
        match &self.response {
            Some(
                Response::Append(_)
                | Response::Vote(_)
                | Response::Transfer(_)
                | Response::ReadIndex(_)
                | Response::Forward(_)
                | Response::Refusal(_)
                | Response::Digest(_)
                | Response::Ship(_)
                | Response::Probe(_),
            )
            | None => Cargo::Nothing,
            Some(Response::Read(_)) => Cargo::Handled,
        }
    }
}

impl Carries for wire::SnapshotStart {
    fn cargo(&self) -> Cargo {
        Cargo::Kept(&[Kind::Snapshot, Kind::Staged])
    }
}
