//! Real processes under load, broken on purpose.
//!
//! A scenario ([`scenario`]) starts three nodes ([`crate::cluster`]), loads them through the client library ([`load`]), breaks them, heals them, reads everything once more at the leader and at every node, and hands the history to [`crate::judge`]. [`mixed`] does the same with faults that overlap, in one region or three. [`regions`] kills all nodes of three regions and compares every record and every byte, without a history.
//!
//! A lost acknowledged write shows twice: as an element missing from a set, and as a read that no order of the operations explains.
//!
//! The seed decides the moments of the faults. Processes have their own timing, so a seed repeats the plan of a run and not its every step.
//!
//! Not done here: judging single properties (`check`), simulation (`sim`).

mod chance;
mod crowds;
mod damage;
mod disks;
mod input;
pub mod load;
mod mixed;
pub mod power;
pub mod regions;
mod rolled;
pub mod scenario;
mod slow;
mod stage;
mod wire;

pub use scenario::{PAGE, Scenario};
pub use stage::Run;
