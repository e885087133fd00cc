//! Which `api-version` each type answers to.

use crate::problem::Problem;

/// Versions of the Resource Manager's own resources.
pub const RESOURCES: &[&str] = &["2021-04-01", "2022-09-01", "2024-03-01"];
/// Versions of the network types, which are stubs here.
pub const NETWORK: &[&str] = &["2020-11-01", "2023-09-01", "2024-05-01"];

const MACHINES: &[&str] = &["2024-07-01"];
const DISKS: &[&str] = &["2024-03-02"];
const GALLERIES: &[&str] = &["2023-07-03"];
const SKUS: &[&str] = &["2021-07-01"];

/// The versions of a Compute route.
fn versions(route: &str) -> &'static [&'static str] {
    let first = route.split('/').next().unwrap_or_default();
    match first {
        "disks" | "snapshots" => DISKS,
        "galleries" => GALLERIES,
        "skus" => SKUS,
        _ => MACHINES,
    }
}

/// Checks the `api-version` of a request.
///
/// # Errors
/// It is missing, or not one of the type's; with `lenient` any will do.
pub fn check(
    given: Option<&str>,
    provider: &str,
    route: &str,
    lenient: bool,
) -> Result<(), Problem> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Err(Problem::new(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        ));
    };
    // An operation is read with the version of the request that began it.
    let operation = route.starts_with("locations/") && route.contains("operations");
    let known = match provider {
        "microsoft.compute" => versions(route),
        "microsoft.network" => NETWORK,
        _ => RESOURCES,
    };
    if lenient || operation || known.contains(&given) {
        return Ok(());
    }
    Err(Problem::new(
        400,
        "NoRegisteredProviderFound",
        format!(
            "No registered resource provider found for API version '{given}' for type '{route}'. \
             The supported api-versions are '{}'.",
            known.join(", ")
        ),
    )
    .with("x-ms-failure-cause", "gateway"))
}
