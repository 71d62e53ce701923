//! The orders of every version, compared with the packs frame by frame.

use rayon::prelude::*;
use vmnetx_format::{Digest, Order, order_path};
use vmnetx_store::dir::RepositoryDir;

use super::frames::{CheckedPacks, Verdict};
use super::{Findings, told};
use crate::local::Packs;
use crate::order::read_order;
use crate::reach::Reach;

/// Compares the orders with the packs; gives the number of orders. Those that are no orders were told of by the walk.
pub(super) fn check_orders(
    repository: &RepositoryDir,
    reach: &Reach,
    checked: &CheckedPacks,
    findings: &Findings,
) -> u64 {
    let packs = Packs::new(repository.clone());
    let orders: Vec<Digest> = reach.orders().into_iter().collect();
    orders.par_iter().for_each(|digest| {
        if let Ok(order) = read_order(repository, digest) {
            check_order(&order_path(digest), &order, &packs, checked, findings);
        }
    });
    orders.len() as u64
}

/// A frame that is not what the order says wastes a reader's time, and harms no version: so no version is affected.
fn check_order(object: &str, order: &Order, packs: &Packs, checked: &CheckedPacks, findings: &Findings) {
    for (number, frame) in order.frames().iter().enumerate() {
        let what = match checked.verdict_of_any(&frame.place, frame.plain_len, &frame.digest) {
            Verdict::Good => continue,
            Verdict::Elsewhere => format!("it and the catalogue of pack {} disagree", frame.place.pack),
            Verdict::Unknown => match packs.frame(&frame.place, frame.plain_len, &frame.digest) {
                Ok(_) => continue,
                Err(damage) => told(&damage),
            },
        };
        findings.add(object, format!("frame {number}: {what}"), None);
    }
}
