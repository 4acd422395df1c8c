//! What the screen says.

use std::time::Duration;

use super::cluster::Cluster;

/// Prints what runs and what to try.
pub(super) fn print(cluster: &Cluster, took: Duration) {
    let nodes = cluster.nodes().count();
    println!(
        "Domicile demo: {nodes} nodes in 3 regions, ready in {:.1} s.\n",
        took.as_secs_f64()
    );
    println!("{}", distances(cluster));
    println!(
        "  TAG        HOME  STORED IN    CALLED FROM\n  \
           eu-only    eu    eu           eu\n  \
           us-only    us    us           us\n  \
           global     eu    eu us ap     everywhere\n  \
           eu-shared  eu    eu           eu us\n"
    );
    println!(
        "Try:\n  \
           put global/greeting hello               a write, at the home in eu\n  \
           get global/greeting --from us           strong: one round trip to eu\n  \
           get global/greeting --from us --level local   here and now, with its age\n  \
           put eu-only/user/42 alice               stays in eu\n  \
           get eu-only/user/42 --from us           refused: us may not hold it\n  \
           put eu-only/x 1 --ack regions=us        refused: it would place bytes in us\n  \
           kill leader global                      writes go on after an election\n  \
           isolate us                              the mirror's age grows; `heal` ends it\n  \
           audit run                               where every byte is\n\
         `help` lists all commands, `exit` leaves.\n"
    );
    for region in cluster.regions() {
        println!("  {region}: {}", cluster.endpoints(&region).join("  "));
    }
    println!();
}

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
