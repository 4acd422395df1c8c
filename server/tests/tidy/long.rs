//! Functions that are long, and why they are not several.

use crate::Reason;

pub(super) const REASONS: [Reason; 30] = [
    (
        "client/src/bin/domicile/audit.rs",
        "run",
        "the order of what an audit asks and prints",
    ),
    (
        "client/src/bin/domicile/audit.rs",
        "text",
        "one page of text, from top to bottom",
    ),
    (
        "client/src/bin/domicile/node.rs",
        "relocate",
        "steps that each need what the one before found",
    ),
    (
        "client/src/bin/domicile/scan.rs",
        "run",
        "one loop over pages with its ways out",
    ),
    (
        "client/src/transport/target.rs",
        "attempt",
        "one table: what each answer means for the next attempt",
    ),
    ("jepsen/src/chaos/disks.rs", "full_mirror", SCRIPT),
    (
        "jepsen/src/chaos/mixed/nemesis.rs",
        "begin",
        "one arm for each fault",
    ),
    ("jepsen/src/chaos/slow.rs", "slow_follower", SCRIPT),
    (
        "jepsen/src/chaos/wire.rs",
        "requests",
        "a list of malformed requests",
    ),
    ("jepsen/src/check/bank.rs", "check", CHECKER),
    ("jepsen/src/check/digest.rs", "check", CHECKER),
    ("jepsen/src/chaos/regions/mod.rs", "run", SCRIPT),
    (
        "jepsen/src/sim/plan.rs",
        "fault",
        "one arm for each fault, with its odds",
    ),
    ("jepsen/src/sim/run.rs", "run", SCRIPT),
    (
        "server/src/api/nodes.rs",
        "status_of",
        "one message, field by field",
    ),
    (
        "server/src/api/peer.rs",
        "exchange",
        "sets up one stream of which every part needs the others",
    ),
    ("server/src/api/peer.rs", "take", "one arm for each request"),
    (
        "server/src/api/regions.rs",
        "replication",
        "one message, field by field",
    ),
    (
        "server/src/kv/read/reach.rs",
        "reach",
        "one decision: where a read may be served",
    ),
    (
        "server/src/kv/read/scan.rs",
        "scan_here",
        "one page, with the ranges that it may cross",
    ),
    (
        "server/src/main.rs",
        "serve",
        "what a process sets up, in the order that it is torn down",
    ),
    (
        "server/src/net/connection.rs",
        "exchange",
        "one loop over what a connection may bring or send",
    ),
    (
        "server/src/node/mod.rs",
        "start",
        "wires the rooms: each line is one of them",
    ),
    (
        "server/src/placement/repair/place.rs",
        "place_here",
        "checks in an order that refusals depend on",
    ),
    (
        "server/src/placement/form/plan.rs",
        "new",
        "one plan, refused at the first thing that does not fit",
    ),
    (
        "server/src/placement/repair/replace.rs",
        "replace_node",
        "steps that can be run again, in their order",
    ),
    (
        "server/src/placement/repair/replace.rs",
        "replace_control_member",
        "steps that can be run again, in their order",
    ),
    (
        "server/src/raft/group.rs",
        "open",
        "wires one replica: each part needs those before",
    ),
    (
        "server/src/raft/inbound.rs",
        "append",
        "checks in an order that safety depends on",
    ),
    (
        "server/src/state/apply.rs",
        "command",
        "one arm for each command",
    ),
];

const SCRIPT: &str = "a script of what is done to a cluster and seen of it";
const CHECKER: &str = "one pass over a history";
