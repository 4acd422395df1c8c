//! Three nodes of Domicile in one region.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Cluster, NODES, TAG};
use crate::clock;
use crate::process::{Process, free_addresses};

/// How long the nodes may take until the cluster can be formed.
const FORM_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait between two tries to form it.
const FORM_PAUSE: Duration = Duration::from_millis(200);

/// The region of all nodes.
const REGION: &str = "eu";

/// Starts the nodes and forms the cluster. All that this crate knows of
/// Domicile's configuration, policy and command line is in this file.
pub(super) async fn start(domiciled: &Path, domicile: &Path, directory: &Path) -> Result<Cluster> {
    let addresses = free_addresses(NODES)?;
    let mut processes = Vec::new();
    for (node, address) in (1..).zip(&addresses) {
        let config = directory.join(format!("node-{node}.toml"));
        let data = directory.join(format!("node-{node}"));
        write(&config, &config_text(node, *address, &data))?;
        let arguments = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
        let name = format!("domiciled-{node}");
        processes.push(Process::start(&name, domiciled, arguments, directory)?);
    }
    let policy = directory.join("policy.toml");
    write(&policy, &policy_text())?;
    form(domicile, &addresses, &policy, &mut processes).await?;
    Ok(Cluster {
        processes,
        endpoints: addresses.iter().map(ToString::to_string).collect(),
        leader: None,
        directory: directory.to_owned(),
    })
}

/// The configuration file of a node.
fn config_text(node: usize, listen: SocketAddr, data: &Path) -> String {
    let data = data.display();
    format!(
        r#"node = {node}
region = "{REGION}"
listen = "{listen}"
data_dir = "{data}"
insecure_dev = true
"#
    )
}

/// The residency policy: one region, one tag.
fn policy_text() -> String {
    format!(
        r#"schema = "domicile.policy/v1"
version = 1

[regions.{REGION}]
jurisdiction = "DE"

[tags.{TAG}]
class = "public"
home = "{REGION}"
store = ["{REGION}"]
"#
    )
}

/// Forms the cluster, trying again while the nodes start.
async fn form(
    domicile: &Path,
    addresses: &[SocketAddr],
    policy: &Path,
    processes: &mut [Process],
) -> Result<()> {
    let mut arguments: Vec<String> = ["cluster", "init", "--name", "bench"]
        .map(str::to_owned)
        .to_vec();
    for (node, address) in (1..).zip(addresses) {
        arguments.push("--node".to_owned());
        arguments.push(format!("{REGION}/{node}={address}"));
    }
    arguments.push("--endpoints".to_owned());
    arguments.push(format!("http://{}", addresses[0]));
    arguments.push("--policy".to_owned());
    arguments.push(policy.display().to_string());
    let deadline = clock::now() + FORM_TIMEOUT;
    loop {
        let output = tokio::process::Command::new(domicile)
            .args(&arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("running {}", domicile.display()))?;
        if output.status.success() {
            return Ok(());
        }
        processes
            .iter_mut()
            .try_for_each(Process::require_running)?;
        if clock::now() > deadline {
            bail!(
                "`domicile {}` failed: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        tokio::time::sleep(FORM_PAUSE).await;
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{TAG, policy_text};
    use domicile_proto::address::Tag;
    use domicile_proto::policy::Policy;

    #[test]
    fn the_policy_is_valid_and_enforced_in_full() {
        let policy = Policy::parse(&policy_text()).expect("a valid policy");
        assert!(policy.unenforced().is_empty(), "{:?}", policy.unenforced());
        assert!(policy.tag(&Tag::new(TAG).expect("a valid tag")).is_some());
    }
}
