//! What the clients of a region do once nobody works any more: everything is
//! read again, at every node that must keep up.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};
use domicile_client::{Client, Error};

use super::clients::{Clients, STEP};
use super::held::held;
use super::shape::Tag;
use super::stage::Homes;
use super::{SET, Worker};
use crate::history::{Digest, Level, Note, RegionId};

/// How often all replicas are read at most until nothing changes meanwhile: a
/// write without an answer comes within the seconds for which a node waits for
/// the answer to what it passed on.
const ROUNDS_MAX: u32 = 50;

impl Clients {
    /// Asks for what must be refused, reads at a token that no later write
    /// helps to meet, then reads everything.
    pub(super) async fn read_everything(&self) {
        let regions = self.present();
        self.stage.all_are_here(regions).await;
        let client = self.connect(self.endpoints.clone()).await;
        let intruder = Worker::new(client.clone(), self.recorder.clone(), "");
        while !self.trespass(&intruder).await {
            tokio::time::sleep(STEP).await;
        }
        self.read_at_nothing(&client).await;
        // Nobody compares replicas while somebody still writes.
        self.stage.all_are_here(regions).await;
        for digest in self.compare(&client).await {
            self.recorder.note(Note::Digest(digest));
        }
    }

    /// The nodes of the region that must keep up, and where they are.
    pub(super) fn living(&self) -> impl Iterator<Item = (u64, &String)> {
        let left = self.stage.left.lock().clone();
        let numbered = (1..).zip(&self.endpoints);
        numbered.filter(move |(number, _)| !left.contains(&(self.region, *number)))
    }

    /// How many regions have nodes that must keep up.
    fn present(&self) -> usize {
        let left = self.stage.left.lock();
        let living = self.shape.hosts().filter(|host| !left.contains(host));
        let regions: BTreeSet<_> = living.map(|(region, _)| region).collect();
        regions.len()
    }

    /// Reads at the token of a write that changed nothing, at every node here
    /// that holds its tag, until that is answered: a copy that has everything
    /// meets every token.
    async fn read_at_nothing(&self, client: &Client) {
        let mut writer = Worker::new(client.clone(), self.recorder.clone(), "");
        let own = self.shape.tags().iter();
        for tag in own.filter(|tag| tag.stored.contains(&self.region)) {
            writer.turn_to(tag.name, self.seed);
            while let Err(error) = self.nothing(&mut writer, tag).await {
                (self.said)(format_args!("{}: {error:#}", self.region));
                tokio::time::sleep(STEP).await;
            }
        }
    }

    async fn nothing(&self, writer: &mut Worker, tag: &Tag) -> Result<()> {
        let token = writer.token_of_nothing().await;
        let token = token.context("a write that was sent twice had no answer")?;
        for (number, endpoint) in self.living() {
            let node = self.connect(vec![endpoint.clone()]).await;
            let read = node.tag(tag.name)?.get(SET).at_least(&token).or_wait();
            read.await.with_context(|| {
                format!(
                    "node {number} does not meet the token of a write to {}",
                    tag.name
                )
            })?;
        }
        Ok(())
    }

    /// Reads everything, as often as it takes, and again with all regions while
    /// a write that never got its answer changes something meanwhile. Answers
    /// the digests of the nodes.
    async fn compare(&self, client: &Client) -> Vec<Digest> {
        let mut round = 0;
        loop {
            match self.read_all(client).await {
                Ok((digests, homes)) => {
                    round += 1;
                    let regions = self.present();
                    let still = self.stage.stood_still(round, regions, homes).await;
                    if still || round == ROUNDS_MAX {
                        return digests;
                    }
                    (self.said)(format_args!("{}: a write came late", self.region));
                }
                Err(error) => (self.said)(format_args!("{}: {error:#}", self.region)),
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// Reads every register, counter and list of the tags whose home this is,
    /// and the state of every node of the region. Answers the nodes' digests, and
    /// where the homes were before and after.
    async fn read_all(&self, client: &Client) -> Result<(Vec<Digest>, Homes)> {
        let mut reader = Worker::new(client.clone(), self.recorder.clone(), "");
        let mut digests = Vec::new();
        let mut homes = Homes::new();
        for tag in self.shape.tags() {
            reader.turn_to(tag.name, self.seed);
            if tag.home == self.region {
                self.read_records(&mut reader, tag).await?;
            }
            if !tag.stored.contains(&self.region) {
                continue;
            }
            let before = client.tag(tag.name)?.get(SET).strong().await;
            let before = before.with_context(|| format!("no strong read of {}", tag.name))?;
            for (number, endpoint) in self.living() {
                let name = format!("{}/{number}", self.region);
                let node = self.connect(vec![endpoint.clone()]).await;
                let token = &before.meta.token;
                digests.push(self.read_node(&name, node, tag, token).await?);
            }
            let after = client.tag(tag.name)?.get(SET).strong().await?;
            let versions = [&before, &after].map(|got| got.meta.as_of.get());
            homes.entry(tag.name).or_default().extend(versions);
        }
        Ok((digests, homes))
    }

    async fn read_records(&self, reader: &mut Worker, tag: &Tag) -> Result<()> {
        let own = |names: BTreeSet<String>| -> Vec<String> {
            let prefix = format!("{}/", tag.name);
            let keys = names.iter().filter_map(|name| name.strip_prefix(&prefix));
            keys.map(str::to_owned).collect()
        };
        for key in own(self.recorder.registers()) {
            if !reader.read(&key, Level::Strong, true).await {
                bail!("{} cannot be read", tag.name);
            }
        }
        for key in own(self.recorder.counters()) {
            if !reader.total(&key, true).await {
                bail!("a counter of {} cannot be read", tag.name);
            }
        }
        for key in own(self.recorder.lists()) {
            if !reader.list_of(&key).await {
                bail!("a list of {} cannot be read", tag.name);
            }
        }
        if tag.name == self.set() && reader.scan(Level::Strong, true).await.is_none() {
            bail!("the set cannot be read");
        }
        Ok(())
    }

    async fn read_node(
        &self,
        name: &str,
        node: Client,
        tag: &Tag,
        token: &domicile_client::Token,
    ) -> Result<Digest> {
        let late =
            |error: Error| anyhow::anyhow!("{name} has not caught up with {}: {error}", tag.name);
        let handle = node.tag(tag.name)?;
        if tag.name == self.set() {
            let gates = node.admin().replication().await?.refusals;
            let taken_in = gates.iter().filter(|refusal| refusal.gate == "ingress");
            let count = taken_in.map(|refusal| refusal.count).sum();
            self.stage.refusals.fetch_add(count, Ordering::Relaxed);
        }
        handle
            .get(SET)
            .at_least(token)
            .or_wait()
            .await
            .map_err(late)?;
        if tag.name == self.set() {
            let mut reader = Worker::new(node.clone(), self.recorder.clone(), tag.name);
            reader.turn_to(tag.name, self.seed);
            let served = reader.scan(Level::Local, true).await;
            if served.as_deref() != Some(name) {
                bail!("{served:?} answered for {name}");
            }
        }
        let held = held(&handle).await?;
        Ok(Digest {
            region: RegionId::from(self.region),
            node: name.rsplit('/').next().unwrap_or(name).to_owned(),
            tag: tag.name.to_owned(),
            range: "all".to_owned(),
            digest: held.digest,
            records: held.records,
        })
    }
}
