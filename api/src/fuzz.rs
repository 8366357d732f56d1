//! Fuzz targets (`fuzz/`): none of them may panic, whatever the bytes are.

use crate::{Resource, yaml};

/// Resources as people write them and as they travel.
pub fn resources(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (resources, problems) = yaml::resources(text);
    for resource in &resources {
        assert_eq!(resource.key().name, resource.name());
    }
    for problem in &problems {
        assert!(!problem.to_string().is_empty());
    }
    if let Ok(value) = serde_json::from_str(text) {
        // As JSON it means what it means as YAML, whose superset it is; but YAML has bounds of its own.
        let read = Resource::from_json(value);
        if let (Ok(one), [other]) = (&read, &resources[..]) {
            assert_eq!(one.key(), other.key());
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_do_not_panic() {
        mutate::run("resources", 3_000, resources);
    }
}
