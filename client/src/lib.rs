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
//! An operation begins at a [`TagHandle`]. What may be asked, and what is answered, is
//! in `operation`. How it gets to a node that may serve the tag, in attempts that are
//! all under one deadline, and what is safe to send again, is in `transport`. Every
//! write carries a request id, so that the server applies it once. What all of them
//! answer with is in `answer` and `error`. Each folder uses only those that are named
//! after it.
//!
//! A write without an answer is [`Error::OutcomeUnknown`], never "failed"; one that is applied, but not yet
//! in every region it should wait for, is [`Error::AckNotReached`].
//!
//! A tag that the caller's own region may not serve is read and written at its
//! home: the first refusal names the home's nodes, and the client goes there.
//!
//! With [`Tls`] every connection is made with a certificate, and only to nodes.
//!
//! Not done here: deciding where a tag may be, which only nodes do. The program `domicile` is in this crate, too (`src/bin`).

mod admin;
mod answer;
mod builder;
mod client;
mod env;
mod error;
mod operation;
mod request_id;
mod tag;
mod transport;

pub use crate::admin::Admin;
pub use crate::answer::{Level, Meta, Record, Token};
pub use crate::builder::Builder;
pub use crate::client::Client;
#[doc(hidden)]
pub use crate::env::draw_from_seed;
pub use crate::error::{Cause, Error, Refusal};
pub use crate::operation::batch::{Batch, Outcome};
pub use crate::operation::bytes::IntoBytes;
pub use crate::operation::delete::{Delete, Deleted};
pub use crate::operation::get::{Get, Got};
pub use crate::operation::put::{Put, Written};
pub use crate::operation::scan::{Page, Pages, Scan};
pub use crate::operation::write::Acknowledge;
pub use crate::request_id::{RequestId, RequestIdError};
pub use crate::tag::TagHandle;
pub use crate::transport::dial::{Dial, Socket};
pub use crate::transport::options::Transport;
pub use crate::transport::tls::Tls;
pub use domicile_proto::address::{Address, AddressError, Key, Tag, Value, Version};
pub use domicile_proto::reason::Reason;
