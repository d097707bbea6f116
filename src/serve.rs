//! Builds everything, hands it its parts, drains it.
