//! What a new cluster begins with.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeFrom;

use bytes::Bytes;
use domicile_proto::address::{RegionName, Tag};
use domicile_proto::disk::v1 as disk;
use domicile_proto::host_port::check_host_port;
use domicile_proto::limits::{
    REMEMBERED_CLIENTS_MAX, REMEMBERED_OUTCOMES_MAX, SESSION_OPERATIONS_MAX, TAGS_PER_REGION_MAX,
};
use domicile_proto::policy::TagRules;
use domicile_proto::v1;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::placement::REPLICAS;
use crate::policy::read_policy;
use crate::seeded;
use crate::storage::{FIRST_RANGE, REGION_GROUP};

/// The voters of the control group where there are enough nodes in several
/// regions: two nodes or one region may fail.
const CONTROL_VOTERS: usize = 5;

/// The bits of a replica id that count within an incarnation of a region; the
/// others say which one: nobody makes as many replicas.
const REPLICAS_BITS: u32 = 32;

/// What a new cluster begins with.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::placement) struct Plan {
    /// What all regions know.
    pub(in crate::placement) control: disk::Control,
    /// What each region knows of itself.
    pub(in crate::placement) catalogs: BTreeMap<String, disk::Catalog>,
    /// What whoever forms the cluster should know.
    pub(in crate::placement) warnings: Vec<String>,
}

impl Plan {
    /// The plan that a request asks for. Ids and keys are drawn anew.
    pub(in crate::placement) fn new(env: &Env, request: &v1::InitClusterRequest) -> Result<Plan> {
        RegionName::new(&request.name)
            .map_err(|e| Error::invalid(format!("the name of the cluster: {e}")))?;
        let policy = read_policy(&request.policy)?;
        let regions = regions(&request.nodes)?;
        for region in &regions {
            if region.nodes.len() > REPLICAS {
                return Err(Error::new(
                    Reason::Unsupported,
                    format!(
                        "{} has {} nodes; a region has at most {REPLICAS} in this release",
                        region.region,
                        region.nodes.len()
                    ),
                ));
            }
            let known = policy
                .regions()
                .keys()
                .any(|r| r.as_str() == region.region.as_str());
            if !known {
                return Err(Error::new(
                    Reason::PolicyInvalid,
                    format!(
                        "the policy does not know region {}; add it or leave its nodes out",
                        region.region
                    ),
                ));
            }
        }
        for region in &regions {
            let holds = |rules: &&TagRules| {
                let mut holders = std::iter::once(&rules.home).chain(&rules.replicate_to);
                holders.any(|holder| holder.as_str() == region.region)
            };
            let tags = policy.tags().values().filter(holds).count();
            if tags > TAGS_PER_REGION_MAX {
                return Err(Error::new(
                    Reason::Unsupported,
                    format!(
                        "{} would hold {tags} tags; a region holds at most {TAGS_PER_REGION_MAX} \
                         in this release",
                        region.region
                    ),
                ));
            }
        }
        let mut ranges = FIRST_RANGE..;
        let tags = policy.tags().iter().map(|(tag, rules)| {
            for region in std::iter::once(&rules.home).chain(&rules.replicate_to) {
                if !regions.iter().any(|r| r.region == region.as_str()) {
                    return Err(Error::invalid(format!(
                        "{tag} is to be held in {region}, and no node of it is named; add \
                         `--node {region}/1=HOST:PORT`"
                    )));
                }
            }
            Ok(disk::ControlTag {
                tag: tag.to_string(),
                home: rules.home.to_string(),
                epoch: 1,
                ranges: first_ranges(tag, &mut ranges, &rules.replicate_to),
            })
        });
        let tags = tags.collect::<Result<Vec<_>>>()?;
        let members = members(&regions);
        let mut warnings = warnings(&members, &regions);
        warnings.extend(small_memory(request));
        let cluster = Bytes::copy_from_slice(&env.random_bytes::<16>());
        let catalogs = regions
            .iter()
            .map(|region| {
                let catalog = catalog(&cluster, &request.name, region);
                (region.region.clone(), catalog)
            })
            .collect();
        Ok(Plan {
            control: disk::Control {
                cluster,
                name: request.name.clone(),
                policy: request.policy.clone(),
                next_range: ranges.start,
                next_replica: members.len() as u64 + 1,
                regions,
                tags,
                members,
                request_limits: Some(request_limits(request)?),
                level: seeded::level(),
            },
            catalogs,
            warnings,
        })
    }

    /// The same plan for a cluster whose id is known already.
    pub(in crate::placement) fn for_cluster(mut self, cluster: Bytes) -> Plan {
        for catalog in self.catalogs.values_mut() {
            catalog.cluster = cluster.clone();
        }
        self.control.cluster = cluster;
        self
    }

    /// Whether a formed cluster is the one that this plan asks for.
    pub(in crate::placement) fn asks_for(&self, formed: &disk::Control) -> bool {
        let nodes = |control: &disk::Control| {
            let regions = control.regions.iter();
            regions
                .flat_map(|r| r.nodes.iter().map(|n| (r.region.clone(), n.node)))
                .collect::<Vec<_>>()
        };
        formed.name == self.control.name
            && formed.policy == self.control.policy
            && formed.request_limits == self.control.request_limits
            && nodes(formed) == nodes(&self.control)
    }
}

/// The ranges that a tag begins with: one that has all its keys.
fn first_ranges(
    tag: &Tag,
    numbers: &mut RangeFrom<u64>,
    mirrors: &BTreeSet<RegionName>,
) -> Vec<disk::ControlRange> {
    let mirror = |region: &RegionName| disk::ControlMirror {
        region: region.to_string(),
        incarnation: 1,
    };
    let numbers = numbers.take(seeded::spans(tag.as_str()).len());
    let ranges = numbers.map(|range| disk::ControlRange {
        range,
        home_incarnation: 1,
        mirrors: mirrors.iter().map(mirror).collect(),
    });
    ranges.collect()
}

/// The regions of the nodes, numbered by name.
fn regions(nodes: &[v1::NodeAddress]) -> Result<Vec<disk::ControlRegion>> {
    let mut by_region: BTreeMap<RegionName, BTreeMap<u64, &v1::NodeAddress>> = BTreeMap::new();
    for node in nodes {
        let region = RegionName::new(&node.region)
            .map_err(|e| Error::invalid(format!("the region of a node: {e}")))?;
        let callers = node.callers.iter().map(|callers| &callers.address);
        for address in std::iter::once(&node.address).chain(callers) {
            check_host_port(address).map_err(|e| Error::invalid(e.to_string()))?;
        }
        let known = by_region.entry(region).or_default();
        let usable = (1..=u64::from(u32::MAX)).contains(&node.node);
        if !usable || known.insert(node.node, node).is_some() {
            return Err(Error::invalid(format!(
                "node {}/{} stands twice, or its number is not between 1 and 2^32 - 1",
                node.region, node.node
            )));
        }
    }
    let numbered = (1..).zip(by_region);
    Ok(numbered
        .map(|(number, (region, nodes))| disk::ControlRegion {
            region: region.to_string(),
            number,
            incarnation: 1,
            rebuild: disk::Rebuild::Unspecified.into(),
            nodes: nodes
                .into_values()
                .map(|node| disk::Node {
                    node: node.node,
                    address: node.address.clone(),
                    callers: node
                        .callers
                        .iter()
                        .map(|callers| disk::CallerAddress {
                            region: callers.region.clone(),
                            address: callers.address.clone(),
                        })
                        .collect(),
                })
                .collect(),
        })
        .collect())
}

/// The replicas of the control group: an odd number of voters, spread over the
/// regions so that from three on none alone is a quorum; the others are learners.
fn members(regions: &[disk::ControlRegion]) -> Vec<disk::ControlMember> {
    let (voters, of_region) = seats(regions);
    // One node of each region in turn.
    let longest = regions.iter().map(|r| r.nodes.len()).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|at| {
        regions.iter().filter_map(move |region| {
            let node = region.nodes.get(at)?;
            Some((region.region.clone(), node.node, at < of_region))
        })
    });
    let mut seats = 0..voters;
    (1..)
        .zip(in_turn)
        .map(|(replica, (region, node, may_vote))| disk::ControlMember {
            replica,
            region,
            node,
            voter: may_vote && seats.next().is_some(),
        })
        .collect()
}

/// How many nodes vote in the control group, and how many of one region at
/// most. Fewer vote where more would make one region of three a quorum.
fn seats(regions: &[disk::ControlRegion]) -> (usize, usize) {
    let most = if regions.len() > 1 {
        CONTROL_VOTERS
    } else {
        REPLICAS
    };
    let mut possible = (1..=most).rev().step_by(2).map(|voters| {
        let of_region = match regions.len() {
            1 => voters,
            // One of two always has the majority of an odd number.
            2 => voters / 2 + 1,
            _ => voters / 2,
        };
        (voters, of_region)
    });
    let fits = |(voters, of_region): &(usize, usize)| {
        let seats = regions.iter().map(|r| r.nodes.len().min(*of_region));
        seats.sum::<usize>() >= *voters
    };
    possible.find(fits).unwrap_or((1, 1))
}

/// What whoever forms the cluster should know: a region that is a quorum of
/// the control group alone, where there are others.
fn warnings(members: &[disk::ControlMember], regions: &[disk::ControlRegion]) -> Vec<String> {
    let voters: Vec<_> = members.iter().filter(|m| m.voter).collect();
    let names = regions.iter().map(|region| &region.region);
    let alone = names.filter(|region| {
        let of_region = voters.iter().filter(|m| m.region == **region).count();
        regions.len() > 1 && of_region > voters.len() / 2
    });
    let warned = alone.map(|region| {
        format!(
            "{region} has the majority of the control group's voters: when it is lost, the \
             policy cannot change and copying between regions ends; a node in a third region \
             mends this"
        )
    });
    warned.collect()
}

/// What a region knows of itself at first: its nodes and its region group.
pub(in crate::placement) fn catalog(
    cluster: &Bytes,
    name: &str,
    region: &disk::ControlRegion,
) -> disk::Catalog {
    // The ids that an earlier incarnation gave are lost with its catalog: each
    // has its own.
    let given = (region.incarnation - 1) << REPLICAS_BITS;
    let replicas = (given + 1..)
        .zip(&region.nodes)
        .take(REPLICAS)
        .map(|(replica, node)| disk::Member {
            replica,
            node: node.node,
        })
        .collect::<Vec<_>>();
    disk::Catalog {
        removed: Vec::new(),
        cluster: cluster.clone(),
        name: name.to_owned(),
        region: region.region.clone(),
        nodes: region.nodes.clone(),
        next_replica: given + replicas.len() as u64 + 1,
        groups: vec![disk::Group {
            group: REGION_GROUP.0,
            tag: String::new(),
            incarnation: region.incarnation,
            replicas,
            formed: false,
            mirror: false,
            span: None,
        }],
    }
}

/// A warning where a group remembers less than one session may have sent when its
/// connection breaks: what it sends again then may be refused as forgotten.
fn small_memory(request: &v1::InitClusterRequest) -> Option<String> {
    let outcomes = request.remembered_outcomes;
    (outcomes > 0 && outcomes < SESSION_OPERATIONS_MAX as u64).then(|| {
        format!(
            "each group remembers {outcomes} outcomes, and one session may have \
             {SESSION_OPERATIONS_MAX} writes under way: of what is sent again after a lost \
             connection some may be refused as REQUEST_FORGOTTEN; this cannot be changed later"
        )
    })
}

/// How much each group remembers of identified writes.
fn request_limits(request: &v1::InitClusterRequest) -> Result<disk::RequestLimits> {
    for (what, asked, max) in [
        (
            "clients",
            request.remembered_clients,
            REMEMBERED_CLIENTS_MAX,
        ),
        (
            "outcomes",
            request.remembered_outcomes,
            REMEMBERED_OUTCOMES_MAX,
        ),
    ] {
        if asked > max {
            return Err(Error::invalid(format!(
                "a group remembers at most {max} {what}, not {asked}"
            )));
        }
    }
    Ok(disk::RequestLimits {
        clients_max: request.remembered_clients,
        outcomes_max: request.remembered_outcomes,
        outcomes_per_client_max: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(name: &str, number: u64, nodes: u64) -> disk::ControlRegion {
        disk::ControlRegion {
            region: name.into(),
            number,
            incarnation: 1,
            rebuild: disk::Rebuild::Unspecified.into(),
            nodes: (1..=nodes)
                .map(|node| disk::Node {
                    node,
                    address: format!("{name}-{node}:7400"),
                    callers: Vec::new(),
                })
                .collect(),
        }
    }

    /// What forming a cluster of so many nodes in each region is refused for.
    fn refused(nodes: &[(&str, u64)]) -> Option<Reason> {
        let nodes = nodes.iter().flat_map(|(region, count)| {
            (1..=*count).map(move |node| v1::NodeAddress {
                node,
                region: (*region).into(),
                address: format!("{region}-{node}:7400"),
                callers: Vec::new(),
            })
        });
        let request = v1::InitClusterRequest {
            name: "test".into(),
            nodes: nodes.collect(),
            policy: domicile_proto::policy::DEMO.into(),
            ..v1::InitClusterRequest::default()
        };
        let plan = Plan::new(&Env::real(), &request);
        plan.err().map(|refused| refused.reason)
    }

    #[test]
    fn what_cannot_be_formed_is_refused_before_a_node_hears_of_it() {
        assert_eq!(refused(&[("eu", 3), ("us", 3), ("ap", 1)]), None);
        let four = [("eu", 3), ("us", 4), ("ap", 1)];
        assert_eq!(refused(&four), Some(Reason::Unsupported));
        let unknown = [("eu", 1), ("us", 1), ("ap", 1), ("mars", 1)];
        assert_eq!(refused(&unknown), Some(Reason::PolicyInvalid));
        assert_eq!(refused(&[("eu", 1)]), Some(Reason::InvalidArgument));
    }

    #[test]
    fn more_tags_than_a_region_can_hold_are_refused_with_the_limit() {
        let form = |tags: usize| {
            let head = "schema = \"domicile.policy/v1\"\nversion = 1\n\
                        [regions.eu]\njurisdiction = \"DE\"\n\
                        [regions.us]\njurisdiction = \"US\"\n";
            let tag = |at| format!("[tags.t{at}]\nhome = \"eu\"\nstore = [\"eu\"]\n");
            let nodes = ["eu", "us"].map(|region| v1::NodeAddress {
                node: 1,
                region: region.into(),
                address: format!("{region}-1:7400"),
                callers: Vec::new(),
            });
            let request = v1::InitClusterRequest {
                name: "test".into(),
                nodes: nodes.into(),
                policy: head.to_owned() + &(0..tags).map(tag).collect::<String>(),
                ..v1::InitClusterRequest::default()
            };
            Plan::new(&Env::real(), &request)
        };
        assert!(form(TAGS_PER_REGION_MAX).is_ok());
        let refused = form(TAGS_PER_REGION_MAX + 1).expect_err("too many");
        assert_eq!(refused.reason, Reason::Unsupported);
        assert!(
            refused.message.contains("at most 256"),
            "{}",
            refused.message
        );
    }

    fn voters(regions: &[disk::ControlRegion]) -> BTreeMap<String, usize> {
        let mut voters = BTreeMap::new();
        for member in members(regions).into_iter().filter(|m| m.voter) {
            *voters.entry(member.region).or_default() += 1;
        }
        voters
    }

    #[test]
    fn voters_are_odd_and_no_region_of_three_is_a_quorum() {
        for (a, b, c) in [(3, 3, 3), (1, 1, 1), (5, 1, 1), (3, 1, 1), (2, 2, 1)] {
            let voters = voters(&[region("a", 1, a), region("b", 2, b), region("c", 3, c)]);
            let all: usize = voters.values().sum();
            assert_eq!(all % 2, 1, "{voters:?}");
            let most = voters.values().max().expect("three regions");
            assert!(*most <= all / 2, "{voters:?}");
        }
    }

    #[test]
    fn one_region_votes_with_three_and_two_with_five() {
        assert_eq!(voters(&[region("a", 1, 5)])["a"], 3);
        assert_eq!(voters(&[region("a", 1, 2)])["a"], 1);
        let two = voters(&[region("a", 1, 3), region("b", 2, 3)]);
        assert_eq!((two["a"], two["b"]), (3, 2));
    }

    #[test]
    fn whoever_forms_two_regions_is_told_which_decides_alone() {
        let warned = |regions: &[disk::ControlRegion]| warnings(&members(regions), regions);
        let (a, b, c) = (region("a", 1, 3), region("b", 2, 3), region("c", 3, 1));
        let two = warned(&[a.clone(), b.clone()]);
        assert!(two.len() == 1 && two[0].starts_with("a has"), "{two:?}");
        assert_eq!(warned(&[a.clone(), b, c]), Vec::<String>::new());
        assert_eq!(warned(&[a]), Vec::<String>::new());
    }

    #[test]
    fn whoever_asks_for_a_small_memory_of_outcomes_is_told_what_that_means() {
        let warned = |remembered_outcomes| {
            small_memory(&v1::InitClusterRequest {
                remembered_outcomes,
                ..v1::InitClusterRequest::default()
            })
        };
        assert_eq!([0, 1024, 400_000].map(warned), [None, None, None]);
        assert!(warned(1023).is_some_and(|warning| warning.contains("REQUEST_FORGOTTEN")));
    }
}
