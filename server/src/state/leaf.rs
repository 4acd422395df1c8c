//! The audit leaf of each entry.
//!
//! Leaves of a group form a chain. A leaf binds which group of which cluster it is
//! of, and where in its log; its hash is over commitments, so that a node that has
//! no key of the tag makes the same, and nobody finds out a record by guesses.

use bytes::Bytes;
use disk::command::Command;
use disk::operation::Change;
use domicile_proto::disk::v1 as disk;
use prost::Message;
use sha2::{Digest, Sha256};

use super::Applier;
use crate::storage::{Index, keys};

/// Parts the hash from every other use of the same bytes.
const DOMAIN: &[u8] = b"domicile/leaf/1\0";

/// SHA-256 over a command in which each record is its commitment.
pub(super) fn digest(command: &disk::Command) -> [u8; 32] {
    let bare = match &command.command {
        Some(Command::Batch(batch)) => Some(Command::Batch(disk::Batch {
            operations: batch.operations.iter().map(bare_operation).collect(),
            ..*batch
        })),
        Some(Command::Copy(copy)) => Some(Command::Copy(disk::Copy {
            from: copy.from.clone(),
            records: copy.records.iter().map(bare_record).collect(),
            outcomes: copy.outcomes.iter().map(bare_outcomes).collect(),
            ..*copy
        })),
        Some(Command::Backfill(page)) => Some(Command::Backfill(disk::Backfill {
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
    let bare = disk::Command {
        fence: command.fence,
        command: bare,
    };
    Sha256::digest(bare.encode_to_vec()).into()
}

/// A write without what is in its commitment. The digest of what was asked for is
/// one of the record, too.
fn bare_operation(operation: &disk::Operation) -> disk::Operation {
    disk::Operation {
        version: operation.version,
        id: operation.id.as_ref().map(|id| disk::WriteId {
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

fn bare_record(copied: &disk::CopiedRecord) -> disk::CopiedRecord {
    disk::CopiedRecord {
        key: Bytes::new(),
        origin: copied.origin.clone(),
        value: copied.value.as_ref().map(bare_value),
        commitment: copied.commitment.clone(),
        ..*copied
    }
}

fn bare_value(value: &disk::Value) -> disk::Value {
    disk::Value {
        bytes: Bytes::new(),
        ..*value
    }
}

fn bare_outcomes(copied: &disk::CopiedOutcomes) -> disk::CopiedOutcomes {
    let bare = |row: &disk::StoredOutcomes| disk::StoredOutcomes {
        outcomes: row.outcomes.iter().map(bare_outcome).collect(),
        ..*row
    };
    disk::CopiedOutcomes {
        row: copied.row.as_ref().map(bare),
        ..*copied
    }
}

fn bare_outcome(outcome: &disk::StoredOutcome) -> disk::StoredOutcome {
    disk::StoredOutcome {
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
        let leaf = disk::AuditLeaf {
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

    fn put(key: &'static str, value: &'static str, mac: u8) -> disk::Command {
        disk::Command {
            fence: None,
            command: Some(Command::Batch(disk::Batch {
                operations: vec![disk::Operation {
                    version: 7,
                    key: Bytes::from_static(key.as_bytes()),
                    change: Some(Change::Put(disk::Value {
                        bytes: Bytes::from_static(value.as_bytes()),
                        ..disk::Value::default()
                    })),
                    commitment: Some(disk::Commitment {
                        key: 1,
                        mac: vec![mac; 32].into(),
                    }),
                    ..disk::Operation::default()
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
