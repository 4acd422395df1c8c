//! The audit leaf of each entry.
//!
//! Leaves of a group form a chain. A leaf binds which group of which cluster it is
//! of, and where in its log; its hash is over commitments, so that a node that has
//! no key of the tag makes the same, and nobody finds out a record by guesses.

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use prost::Message;
use sha2::{Digest, Sha256};
use wire::command::Command;
use wire::operation::Change;

use super::Applier;
use crate::storage::{Index, keys};

/// Parts the hash from every other use of the same bytes.
const DOMAIN: &[u8] = b"domicile/leaf/1\0";

/// SHA-256 over a command in which each record is its commitment.
pub(super) fn digest(command: &wire::Command) -> [u8; 32] {
    let bare = match &command.command {
        Some(Command::Batch(batch)) => Some(Command::Batch(wire::Batch {
            operations: batch.operations.iter().map(bare_operation).collect(),
            ..*batch
        })),
        Some(Command::Copy(copy)) => Some(Command::Copy(wire::Copy {
            from: copy.from.clone(),
            records: copy.records.iter().map(bare_record).collect(),
            outcomes: copy.outcomes.iter().map(bare_outcomes).collect(),
            ..*copy
        })),
        Some(Command::Backfill(page)) => Some(Command::Backfill(wire::Backfill {
            from: page.from.clone(),
            records: page.records.iter().map(bare_record).collect(),
            outcomes: page.outcomes.iter().map(bare_outcomes).collect(),
            ..*page
        })),
        // Its keys are secrets, which no hash may be guessed by.
        Some(Command::NewTagKey(new)) => {
            return Sha256::digest(new.key.as_ref().map_or(0, |key| key.id).to_be_bytes()).into();
        }
        Some(Command::CopyTagKeys(copy)) => {
            let newest = copy.keys.as_ref().and_then(|keys| keys.keys.last());
            return Sha256::digest(newest.map_or(0, |key| key.id).to_be_bytes()).into();
        }
        Some(
            Command::Catalog(_)
            | Command::Control(_)
            | Command::BeginBackfill(_)
            | Command::EndBackfill(_)
            | Command::RaiseFence(_)
            | Command::Account(_),
        )
        | None => return Sha256::digest(command.encode_to_vec()).into(),
    };
    let bare = wire::Command {
        fence: command.fence,
        command: bare,
    };
    Sha256::digest(bare.encode_to_vec()).into()
}

/// A write without what is in its commitment. The digest of what was asked for is
/// one of the record, too.
fn bare_operation(operation: &wire::Operation) -> wire::Operation {
    wire::Operation {
        version: operation.version,
        id: operation.id.as_ref().map(|id| wire::WriteId {
            client: id.client.clone(),
            digest: Bytes::new(),
            ..*id
        }),
        key: Bytes::new(),
        change: operation.change.as_ref().map(|change| match change {
            Change::Put(value) => Change::Put(bare_value(value)),
            Change::Delete(gone) => Change::Delete(*gone),
            Change::Register(register) => Change::Register(register.clone()),
            Change::Advance(advance) => Change::Advance(*advance),
        }),
        condition: operation.condition,
        commitment: operation.commitment.clone(),
    }
}

fn bare_record(copied: &wire::CopiedRecord) -> wire::CopiedRecord {
    wire::CopiedRecord {
        key: Bytes::new(),
        origin: copied.origin.clone(),
        value: copied.value.as_ref().map(bare_value),
        commitment: copied.commitment.clone(),
        ..*copied
    }
}

fn bare_value(value: &wire::Value) -> wire::Value {
    wire::Value {
        bytes: Bytes::new(),
        ..*value
    }
}

fn bare_outcomes(copied: &wire::CopiedOutcomes) -> wire::CopiedOutcomes {
    let bare = |row: &wire::StoredOutcomes| wire::StoredOutcomes {
        outcomes: row.outcomes.iter().map(bare_outcome).collect(),
        ..*row
    };
    wire::CopiedOutcomes {
        row: copied.row.as_ref().map(bare),
        ..*copied
    }
}

fn bare_outcome(outcome: &wire::StoredOutcome) -> wire::StoredOutcome {
    wire::StoredOutcome {
        client: outcome.client.clone(),
        digest: Bytes::new(),
        ..*outcome
    }
}

impl Applier<'_> {
    /// Adds the entry's audit leaf, chained to the one before.
    pub(super) fn leaf(&mut self, index: Index, entry: [u8; 32], operations: u32) {
        let mut chain = Sha256::new();
        chain.update(DOMAIN);
        for part in [&self.state.audit_chain, &self.identity.cluster] {
            chain.update((part.len() as u64).to_be_bytes());
            chain.update(part);
        }
        for number in [self.identity.group.0, self.identity.incarnation, index.0] {
            chain.update(number.to_be_bytes());
        }
        chain.update(entry);
        let chain = Bytes::copy_from_slice(&chain.finalize());
        let leaf = wire::AuditLeaf {
            chain: chain.clone(),
            entry: Bytes::copy_from_slice(&entry),
            operations,
        };
        let key = keys::audit_leaf(self.identity.group, index);
        self.batch.put_message(key, &leaf);
        self.state.audit_chain = chain;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str, mac: u8) -> wire::Command {
        wire::Command {
            fence: None,
            command: Some(Command::Batch(wire::Batch {
                operations: vec![wire::Operation {
                    version: 7,
                    key: Bytes::from_static(key.as_bytes()),
                    change: Some(Change::Put(wire::Value {
                        bytes: Bytes::from_static(value.as_bytes()),
                        ..wire::Value::default()
                    })),
                    commitment: Some(wire::Commitment {
                        key: 1,
                        mac: vec![mac; 32].into(),
                    }),
                    ..wire::Operation::default()
                }],
                request_limits: None,
            })),
        }
    }

    /// Values may be sealed otherwise at each end; the commitment says what they
    /// are.
    #[test]
    fn a_record_counts_by_its_commitment() {
        assert_eq!(digest(&put("a", "b", 1)), digest(&put("c", "sealed", 1)));
        assert_ne!(digest(&put("a", "b", 1)), digest(&put("a", "b", 2)));
    }
}
