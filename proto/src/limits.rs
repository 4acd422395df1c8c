//! The limits of requests. Each is an error when passed, never a truncation.

/// The longest key, in bytes: keys stand in every index block.
pub const KEY_BYTES_MAX: usize = 1024;

/// The longest value, in bytes: a value is held whole in memory on its way.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes of client writes in one log entry, so that one entry never
/// stalls a heartbeat for long.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most operations in one frame of a session.
pub const SESSION_OPERATIONS_MAX: usize = 1024;

/// The most operations of one session without an answer; a session that sends
/// more is not read from until answers have gone out.
pub const SESSION_IN_FLIGHT_MAX: usize = 4096;

/// The records of a scan's page when the request does not say.
pub const SCAN_PAGE_DEFAULT: usize = 1000;

/// The most records of a scan's page.
pub const SCAN_PAGE_MAX: usize = 10_000;

/// The most bytes of a scan's page, so that a page fits one message.
pub const SCAN_PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The most outcomes of writes that a group remembers for one client, above
/// what the client has acknowledged; the oldest are let go first. A session has
/// at most 4,096 operations in flight.
pub const OUTCOMES_PER_CLIENT_MAX: usize = 8192;

/// The clients of which a group remembers what their writes came to, unless the
/// cluster was formed with another number. The one that wrote least lately is
/// forgotten first; each takes about 300 bytes.
pub const REMEMBERED_CLIENTS: u64 = 100_000;

/// The outcomes that a group remembers over all its clients, unless the cluster
/// was formed with another number; each takes about 100 bytes.
pub const REMEMBERED_OUTCOMES: u64 = 400_000;

/// The most clients that a cluster may be formed to remember for each group: 3 GB
/// of a node's memory.
pub const REMEMBERED_CLIENTS_MAX: u64 = 10_000_000;

/// The most outcomes that a cluster may be formed to remember for each group.
pub const REMEMBERED_OUTCOMES_MAX: u64 = 40_000_000;

/// The most tags that one region may hold, as their home or as a mirror: each is a
/// group of its own on each node of the region.
pub const TAGS_PER_REGION_MAX: usize = 256;

/// The largest message that a client may send or receive, in bytes.
pub const CLIENT_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The largest message between nodes, in bytes.
pub const PEER_MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The most ranges that a read-position token holds. A client that reads more
/// ranges in one session begins a new token.
pub const TOKEN_POSITIONS_MAX: usize = 256;

/// The longest token, in bytes: the positions at their longest, with room.
pub const TOKEN_BYTES_MAX: usize = 20 * 1024;

/// The longest policy document, in bytes: it is a control group's log entry.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;
