//! Feature levels: what the builds of a cluster agree to write.
//!
//! A build knows every level from 1 to [`LEVEL`]. The control group holds the
//! level of the cluster; from there it enters each group with its fence, and it
//! only grows. A node writes nothing – no command, no message, no row – that the
//! cluster's level does not have, so nodes of two builds work side by side, and
//! a cluster can go back to the older build until an operator finalizes the
//! upgrade. A build that meets a level above its own stops and says so.
//!
//! In what is stored or shipped, what a build does not know is seen when it is decoded,
//! but for the values of enumerations, which are numbers like others: only the level keeps
//! a new one from an older build. In a request of a client unknown fields are passed over:
//! what must not be ignored there is a new value of an enumeration, which is refused.
//!
//! To add a feature that older builds do not know: raise [`LEVEL`], name the
//! feature in [`WHAT`], and write it only where the level in force has it.

/// The highest level that this build knows. A new cluster begins with it.
pub const LEVEL: u64 = 1;

/// What each level added, from level 1 on.
pub const WHAT: [&str; LEVEL as usize] = ["the first formats"];
