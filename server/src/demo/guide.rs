//! What the screen says.

use std::time::Duration;

use super::cluster::Cluster;
use crate::console::{Unprinted, print as put};

/// Prints what runs and what to try.
pub(super) fn print(cluster: &Cluster, took: Duration) -> Result<(), Unprinted> {
    let nodes = cluster.nodes().count();
    let mut text = format!(
        "Domicile demo: {nodes} nodes in 3 regions, ready in {:.1} s.\n\n{}\n{TAGS}\n{TRY}\n",
        took.as_secs_f64(),
        distances(cluster)
    );
    text.push_str(
        "From another terminal: DOMICILE_ENDPOINTS and DOMICILE_CLIENT_TLS_DIR of a region\n",
    );
    for region in cluster.regions() {
        text.push_str(&format!(
            "  {region}: {}\n      {}\n",
            cluster.endpoints(&region).join(","),
            cluster.certificates().of_callers(&region).display()
        ));
    }
    text.push('\n');
    put(&text)
}

/// The tags of the demo's policy.
const TAGS: &str = "  \
    TAG        HOME  STORED IN    CALLED FROM
  eu-only    eu    eu           eu
  us-only    us    us           us
  global     eu    eu us ap     everywhere
  eu-shared  eu    eu           eu us
";

/// What to type first.
const TRY: &str = "\
Try:
  put global/greeting hello               a write, at the home in eu
  get global/greeting --from us           strong: one round trip to eu
  get global/greeting --from us --level local   here and now, with its age
  put eu-only/user/42 alice               stays in eu
  get eu-only/user/42 --from us           refused: us may not hold it
  put eu-only/x 1 --ack regions=us        refused: it would place bytes in us
  kill leader global                      writes go on after an election
  isolate us                              the mirror's age grows; `heal` ends it
  audit run                               where every byte is
`help` lists all commands, `exit` leaves.
";

/// The round trips between the regions, and what is cut.
pub(super) fn distances(cluster: &Cluster) -> String {
    let regions = cluster.regions();
    let mut text = String::from("  ROUND TRIP");
    for region in &regions {
        text.push_str(&format!("  {region:>7}"));
    }
    text.push('\n');
    for one in &regions {
        text.push_str(&format!("  {one:<10}"));
        for other in &regions {
            let links = cluster.links();
            let there = links.between(one, other).map(|link| link.condition());
            let back = links.between(other, one).map(|link| link.condition());
            let shown = match (there, back) {
                (Some(there), Some(back)) if there.cut || back.cut => "cut".to_owned(),
                (Some(there), Some(back)) => {
                    format!("{} ms", (there.delay + back.delay).as_millis())
                }
                _ => "-".to_owned(),
            };
            text.push_str(&format!("  {shown:>7}"));
        }
        text.push('\n');
    }
    text
}
