//! The message in a row.
//!
//! What stands on disk is framed ([`super::frame`]); rows are read here.

use prost::Message;

use super::engine::{Engine, View};
pub use super::frame::{
    FORMAT, FRAME_BYTES, check, decode, open, open_bytes, rebind, seal, seal_bytes,
};
use crate::error::Result;

/// Reads a row and the message in it; `None`: there is no such row.
pub fn read<M: Message + Default>(engine: &dyn Engine, key: &[u8]) -> Result<Option<M>> {
    let row = engine.get(key)?;
    row.map(|row| open(key, &row)).transpose()
}

/// The same of a view.
pub fn read_in<M: Message + Default>(view: &dyn View, key: &[u8]) -> Result<Option<M>> {
    let row = view.get(key)?;
    row.map(|row| open(key, &row)).transpose()
}
