//! The client of Domicile, a replicated key-value store in which every record
//! has a residency tag.
//!
//! ```no_run
//! # async fn example() -> Result<(), domicile_client::Error> {
//! use std::time::Duration;
//! use domicile_client::Client;
//!
//! let db = Client::builder()
//!     .endpoints(["http://127.0.0.1:7400"])
//!     .region("eu")
//!     .timeout(Duration::from_millis(800))
//!     .connect()
//!     .await?;
//! let eu = db.tag("eu-only")?;
//! let written = eu.put("user/42", "alice").if_absent().await?;
//! let got = eu.get("user/42").max_staleness(Duration::from_secs(5)).await?;
//! println!("from {}, {:?} behind", got.meta.served_by, got.meta.lag);
//! eu.delete("user/42").if_version(written.version).await?;
//! # Ok(())
//! # }
//! ```
//!
//! An operation begins at a [`TagHandle`], and the client drives it through its
//! attempts (`client`), all under one deadline. Each attempt goes to an endpoint
//! that may serve the tag (`route`), over the one stream that a node has, where
//! operations that wait together are gathered into frames (`session`). Only what
//! is safe is sent again (`retry`). Every write carries a request id, so that the
//! server applies it once (`registration`, `request`). What a read may ask is in `read`, for gets and scans
//! alike. A write without an answer
//! is [`Error::OutcomeUnknown`], never "failed"; one that is applied, but not yet
//! in every region it should wait for, is [`Error::AckNotReached`].
//!
//! A tag that the caller's own region may not serve is read and written at its
//! home: the first refusal names the home's nodes, and the client goes there.
//!
//! Not done here: TLS, which is not there yet, and deciding where a tag may be,
//! which only nodes do. The program `domicile` is in this crate, too (`src/bin`).

mod admin;
mod batch;
mod builder;
mod bytes;
mod client;
mod cluster;
mod connection;
mod delete;
mod dial;
mod env;
mod error;
mod get;
mod opening;
mod put;
mod read;
mod registration;
mod request;
mod retry;
mod route;
mod scan;
mod session;
mod tag;
mod write;

pub use crate::admin::Admin;
pub use crate::batch::{Batch, Outcome};
pub use crate::builder::Builder;
pub use crate::bytes::IntoBytes;
pub use crate::client::Client;
pub use crate::connection::Transport;
pub use crate::delete::{Delete, Deleted};
pub use crate::dial::{Dial, Socket};
#[doc(hidden)]
pub use crate::env::draw_from_seed;
pub use crate::error::{Cause, Error, Refusal};
pub use crate::get::{Get, Got};
pub use crate::put::{Put, Written};
pub use crate::read::{Level, Meta, Record, Token};
pub use crate::request::{RequestId, RequestIdError};
pub use crate::scan::{Page, Pages, Scan};
pub use crate::tag::TagHandle;
pub use crate::write::Acknowledge;
pub use domicile_proto::address::{Address, AddressError, Key, Tag, Value, Version};
pub use domicile_proto::reason::Reason;
