//! What a workload may ask for, by who it is.
//!
//! Each call comes through one of the [`Door`]s of a node. [`Access`] says who may pass
//! it, from the caller's certificate alone: nodes ask what only nodes ask, operators what
//! operators ask, services for records. Who has no identity passes no door; where nodes
//! serve without TLS for development, nobody has one, and all pass.
//!
//! Not done here: proving who calls (`identity`), what the policy allows for a tag
//! (`residency`, `kv`), and grants for tags and keys, which are not there yet.

use std::collections::BTreeSet;

use domicile_proto::identity::{Identity, SpiffeId, Workload};

use crate::error::{Error, Reason, Result};

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Reading and writing records.
    Records,
    /// Commands of operators, from themselves.
    Operators,
    /// A command of an operator that another node passes on.
    PassedOn,
    /// What only nodes ask of each other.
    Nodes,
    /// Whether the node is well.
    Health,
}

/// Who may pass which door of a node.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Who may ask for what operators ask; `None`: nobody is identified, and all may.
    operators: Option<BTreeSet<SpiffeId>>,
}

impl Access {
    /// Where nobody is identified: without TLS, on this machine alone.
    pub fn unidentified() -> Self {
        Access::default()
    }

    /// Where every caller shows a certificate, and these are the operators.
    pub fn identified(operators: impl IntoIterator<Item = SpiffeId>) -> Self {
        Access {
            operators: Some(operators.into_iter().collect()),
        }
    }

    /// Whether callers show certificates.
    pub fn is_identified(&self) -> bool {
        self.operators.is_some()
    }

    /// Refuses who may not pass a door. The answer does not depend on what is asked.
    pub fn pass(&self, door: Door, caller: Option<&Identity>) -> Result<()> {
        let Some(operators) = &self.operators else {
            return Ok(());
        };
        let denied = |message: String| Err(Error::new(Reason::GrantDenied, message));
        let Some(caller) = caller else {
            return denied("nothing proves who calls; call with a certificate".into());
        };
        let id = caller.id();
        let is_node = matches!(id.workload, Workload::Node(_));
        match door {
            Door::Health => Ok(()),
            Door::Nodes | Door::PassedOn if is_node => Ok(()),
            Door::Nodes => denied(format!("{id} is no node, and only nodes may ask this")),
            Door::Records if !is_node => Ok(()),
            Door::Records => denied(format!(
                "{id} is a node, and nodes read and write no records of their own"
            )),
            Door::Operators | Door::PassedOn if operators.contains(id) => Ok(()),
            Door::Operators | Door::PassedOn => denied(format!(
                "{id} is no operator of this node; the setting `operators` names them"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use domicile_proto::address::RegionName;
    use domicile_proto::identity::ClusterName;

    use super::*;
    use crate::identity::testing::identity;

    fn id(workload: Workload) -> SpiffeId {
        SpiffeId {
            region: RegionName::new("eu").expect("a name"),
            cluster: ClusterName::new("dev.test").expect("a name"),
            workload,
        }
    }

    #[test]
    fn each_workload_passes_its_own_doors() {
        use Door::{Health, Nodes, Operators, PassedOn, Records};
        let operator = id(Workload::Service("ann".into()));
        let access = Access::identified([operator.clone()]);
        let doors = [Records, Operators, PassedOn, Nodes, Health];
        let passes = |who: SpiffeId| {
            let identity = identity(&who);
            doors.map(|door| access.pass(door, Some(&identity)).is_ok())
        };
        assert_eq!(
            passes(id(Workload::Node(1))),
            [false, false, true, true, true]
        );
        assert_eq!(passes(operator), [true, true, true, false, true]);
        let service = id(Workload::Service("orders".into()));
        assert_eq!(passes(service), [true, false, false, false, true]);
    }

    #[test]
    fn who_shows_nothing_passes_no_door() {
        let doors = [
            Door::Records,
            Door::Operators,
            Door::PassedOn,
            Door::Nodes,
            Door::Health,
        ];
        let access = Access::identified([]);
        let open = Access::unidentified();
        for door in doors {
            let refused = access.pass(door, None).expect_err("nobody");
            assert_eq!(refused.reason, Reason::GrantDenied);
            open.pass(door, None).expect("for development");
        }
    }
}
