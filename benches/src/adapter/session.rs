//! Domicile through its client library: one client, whose session carries all
//! operations.

use anyhow::{Context, Result};
use bytes::Bytes;
use domicile_client::{Client, Error, Level, TagHandle};

use super::{OPERATION_TIMEOUT, Place, Target};
use crate::measurement::Failure;

/// A client of Domicile, with everything as the library has it by default but
/// the timeout.
#[derive(Clone)]
pub struct Session {
    /// The records of one tag.
    tag: TagHandle,
}

impl Session {
    /// Connects to the cluster of a place.
    pub async fn connect(place: &Place) -> Result<Session> {
        let client = Client::builder()
            .endpoints(place.endpoints.iter())
            .timeout(OPERATION_TIMEOUT)
            .connect()
            .await
            .context("connecting to Domicile")?;
        Ok(Session {
            tag: client.tag(&place.tag)?,
        })
    }
}

impl Target for Session {
    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        self.tag.put(key, value).send().await.map_err(failure)?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes, local: bool) -> Result<Option<Bytes>, Failure> {
        let get = self.tag.get(key);
        let (get, level) = if local {
            (get.local(), Level::Local)
        } else {
            (get.strong(), Level::Strong)
        };
        let got = get.send().await.map_err(failure)?;
        if got.meta.level != level {
            let met = got.meta.level;
            return Err(Failure::Wrong(format!("asked for {level}, got {met}")));
        }
        Ok(got.record.map(|record| record.value.into_bytes()))
    }
}

fn failure(error: Error) -> Failure {
    Failure::Error {
        kind: error.reason_name().to_owned(),
        message: error.to_string(),
    }
}
