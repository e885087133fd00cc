//! What can be had: cores by family and region, sizes, and what is short.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::machine;
use crate::http::{Reply, Request, Target};
use crate::problem::Problem;
use crate::world::World;

/// Cores of a region that a subscription may use when nobody set another limit.
const DEFAULT_CORES: u64 = 10_000;

/// The sizes that can be asked for: name, cores, memory in GiB.
pub(super) const SIZES: &[(&str, u64, &str)] = &[
    ("Standard_B1s", 1, "1"),
    ("Standard_B2s", 2, "4"),
    ("Standard_B2ms", 2, "8"),
    ("Standard_D2s_v3", 2, "8"),
    ("Standard_D4s_v3", 4, "16"),
    ("Standard_D2s_v5", 2, "8"),
    ("Standard_D4s_v5", 4, "16"),
    ("Standard_D8s_v5", 8, "32"),
    ("Standard_D16s_v5", 16, "64"),
    ("Standard_D2as_v5", 2, "8"),
    ("Standard_D4as_v5", 4, "16"),
    ("Standard_E2s_v5", 2, "16"),
    ("Standard_E4s_v5", 4, "32"),
    ("Standard_F2s_v2", 2, "4"),
    ("Standard_F4s_v2", 4, "8"),
    ("Standard_DS1_v2", 1, "3.5"),
    ("Standard_DS2_v2", 2, "7"),
    ("Standard_D1_v2", 1, "3.5"),
];

/// Limits and shortages.
#[derive(Debug, Default)]
pub struct Capacity {
    /// Cores by region and name of the limit: a family, `cores` or `lowPriorityCores`.
    pub limits: BTreeMap<(String, String), u64>,
    /// Sizes that a region does not sell now.
    pub short: Vec<(String, String)>,
}

impl Capacity {
    /// The limit of a region.
    #[must_use]
    pub fn limit(&self, region: &str, name: &str) -> u64 {
        let key = (region.to_owned(), name.to_owned());
        self.limits.get(&key).copied().unwrap_or(DEFAULT_CORES)
    }
}

/// `Standard_D4s_v5` is of `standardDSv5Family`.
#[must_use]
pub(super) fn family(size: &str) -> String {
    let tail = size.trim_start_matches("Standard_");
    let (series, version) = tail.split_once('_').unwrap_or((tail, ""));
    let letters = series.chars().filter(char::is_ascii_alphabetic);
    let letters: String = letters.collect::<String>().to_ascii_uppercase();
    format!("standard{letters}{version}Family")
}

/// The cores of a size; absent for sizes that there are not.
#[must_use]
pub(super) fn cores(size: &str) -> Option<u64> {
    let known = SIZES
        .iter()
        .find(|(name, _, _)| name.eq_ignore_ascii_case(size));
    known.map(|(_, cores, _)| *cores)
}

/// `GET …/locations/L/usages`.
#[must_use]
pub fn usages(world: &World, request: &Request, target: &Target) -> Reply {
    let region = target
        .names
        .first()
        .map_or_else(String::new, |name| super::region(name));
    let used = used(world, &target.subscription, &region);
    let mut names: Vec<String> = vec!["cores".to_owned(), "lowPriorityCores".to_owned()];
    for (size, _, _) in SIZES {
        let family = family(size);
        if !names.contains(&family) {
            names.push(family);
        }
    }
    let one = |name: String| {
        json!({
            "unit": "Count",
            "currentValue": used.get(&name).copied().unwrap_or_default(),
            "limit": world.capacity.limit(&region, &name),
            "name": {"value": name, "localizedValue": localized(&name)},
        })
    };
    world.page(request, names.into_iter().map(one).collect())
}

/// The name of a limit as error messages have it.
#[must_use]
pub(super) fn localized(name: &str) -> String {
    match name {
        "cores" => "Total Regional Cores".to_owned(),
        "lowPriorityCores" => "LowPriorityCores".to_owned(),
        family => format!("{} Family Cores", family.trim_end_matches("Family")),
    }
}

/// Cores in use in a region, by name of the limit. Deallocated machines use none.
#[must_use]
pub(super) fn used(world: &World, subscription: &str, region: &str) -> BTreeMap<String, u64> {
    let prefix = crate::store::key(&format!("/subscriptions/{subscription}"));
    let mut used = BTreeMap::new();
    for (size, spot) in world
        .store
        .under(&prefix)
        .filter(|resource| resource.location == region)
        .flat_map(machine::cores_of)
    {
        let cores = cores(&size).unwrap_or_default();
        let names = match spot {
            true => vec!["lowPriorityCores".to_owned()],
            false => vec!["cores".to_owned(), family(&size)],
        };
        for name in names {
            *used.entry(name).or_default() += cores;
        }
    }
    used
}

/// Whether `count` more machines of a size can be had in a region.
///
/// # Errors
/// There is no such size, the region has none of it now, or a limit would be exceeded.
pub(super) fn admit(
    world: &World,
    subscription: &str,
    region: &str,
    size: &str,
    spot: bool,
    count: u64,
) -> Result<(), Problem> {
    let Some(cores) = cores(size) else {
        let valid: Vec<&str> = SIZES.iter().map(|(name, _, _)| *name).collect();
        return Err(Problem::parameter(
            "vmSize",
            format!(
                "The value {size} provided for the VM size is not valid. The valid sizes in the current region are: {}. Find out more on the valid VM sizes in each region at https://aka.ms/azure-regionservices.",
                valid.join(",")
            ),
        ));
    };
    let short =
        |(place, name): &(String, String)| place == region && name.eq_ignore_ascii_case(size);
    if world.capacity.short.iter().any(short) {
        return Err(Problem::new(
            409,
            "SkuNotAvailable",
            format!(
                "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size}' is currently not available in location '{region}'. Please try another size or deploy to a different location or different zone. See https://aka.ms/azureskunotavailable for details."
            ),
        )
        .about("sku.name"));
    }
    let used = used(world, subscription, region);
    let names = match spot {
        true => vec!["lowPriorityCores".to_owned()],
        false => vec![family(size), "cores".to_owned()],
    };
    let more = cores * count;
    for name in names {
        let (limit, usage) = (
            world.capacity.limit(region, &name),
            used.get(&name).copied().unwrap_or_default(),
        );
        if usage + more > limit {
            return Err(Problem::not_allowed(format!(
                "Operation could not be completed as it results in exceeding approved {} quota. Additional details - Deployment Model: Resource Manager, Location: {region}, Current Limit: {limit}, Current Usage: {usage}, Additional Required: {more}, (Minimum) New Limit Required: {}. Setup Alerts when Quota reaches threshold. Learn more at https://aka.ms/quotamonitoringalerting .",
                localized(&name),
                usage + more
            )));
        }
    }
    Ok(())
}

/// `GET …/skus`.
#[must_use]
pub fn skus(world: &World, request: &Request) -> Reply {
    let filter = request.parameter("$filter").unwrap_or_default();
    let wanted = filter
        .split('\'')
        .nth(1)
        .map_or_else(|| "westeurope".to_owned(), super::region);
    let one = |(name, cores, memory): &(&str, u64, &str)| -> Value {
        let short = world
            .capacity
            .short
            .iter()
            .any(|(region, size)| *region == wanted && size.eq_ignore_ascii_case(name));
        let restrictions = match short {
            false => json!([]),
            true => json!([{
                "type": "Location",
                "values": [wanted],
                "restrictionInfo": {"locations": [wanted]},
                "reasonCode": "NotAvailableForSubscription",
            }]),
        };
        json!({
            "resourceType": "virtualMachines",
            "name": name,
            "tier": "Standard",
            "size": name.trim_start_matches("Standard_"),
            "family": family(name),
            "locations": [wanted],
            "locationInfo": [{"location": wanted, "zones": ["1", "2", "3"]}],
            "capabilities": [
                {"name": "vCPUs", "value": cores.to_string()},
                {"name": "MemoryGB", "value": memory},
                {"name": "HyperVGenerations", "value": "V1,V2"},
                {"name": "LowPriorityCapable", "value": "True"},
                {"name": "CpuArchitectureType", "value": "x64"},
            ],
            "restrictions": restrictions,
        })
    };
    world.page(request, SIZES.iter().map(one).collect())
}
