//! A shop that is made up: the same seed makes the same one, to the last byte.
//!
//! Products have the ids `1`, `2`, …, as trackers mostly send them. Each is made from the seed and its own number alone.

use rust_decimal::Decimal;

use super::model::{Attribute, Image, NewProduct, Status};
use crate::clock::{DAY, UnixMillis};

/// Products of the usual demo.
pub const PRODUCTS: u64 = 10_000;
/// Its seed.
pub const SEED: u64 = 1;

/// When the made-up shop opened.
const OPENED: UnixMillis = 1_672_531_200_000;
/// Every so many-th product is in the same place of the plan below, so that its relatives are known without looking.
const PLAN: u64 = 40;

/// A category: its name, its share of the plan, prices in whole units, what its products are, and what they are made of.
struct Category(&'static str, u64, i64, i64, &'static [&'static str], &'static [&'static str]);

const CATEGORIES: [Category; 12] = [
    Category(
        "Running",
        5,
        40,
        220,
        &["Running Shoe", "Trail Shoe", "Singlet", "Split Shorts", "Running Vest"],
        &["Mesh", "Polyester", "Recycled Nylon"],
    ),
    Category(
        "Hiking",
        4,
        25,
        340,
        &["Hiking Boot", "Rain Jacket", "Trekking Pole", "Daypack 22 l", "Base Layer"],
        &["Leather", "Merino Wool", "Ripstop Nylon"],
    ),
    Category(
        "Cycling",
        4,
        10,
        900,
        &["Road Helmet", "Bib Shorts", "Bike Light", "Floor Pump", "Gravel Wheelset"],
        &["Aluminium", "Carbon", "Lycra"],
    ),
    Category(
        "Kitchen",
        5,
        8,
        260,
        &["Chef's Knife", "Frying Pan 28 cm", "Espresso Maker", "Cutting Board", "Dutch Oven"],
        &["Steel", "Cast Iron", "Oak"],
    ),
    Category(
        "Home & Living",
        4,
        12,
        480,
        &["Table Lamp", "Wool Throw", "Side Table", "Floor Cushion", "Wall Clock"],
        &["Linen", "Ash", "Brass"],
    ),
    Category(
        "Garden",
        3,
        6,
        310,
        &["Pruning Shears", "Watering Can", "Raised Bed", "Hand Trowel", "Hose Reel"],
        &["Steel", "Zinc", "Larch"],
    ),
    Category(
        "Audio",
        3,
        20,
        650,
        &["In-Ear Headphones", "Bookshelf Speaker", "Turntable", "Portable Speaker", "USB-C DAC"],
        &["Aluminium", "Walnut", "ABS"],
    ),
    Category(
        "Computers",
        3,
        15,
        1900,
        &["Mechanical Keyboard", "27\" Monitor", "Wireless Mouse", "USB-C Hub", "Laptop 14\""],
        &["Aluminium", "ABS", "Recycled Plastic"],
    ),
    Category(
        "Toys",
        3,
        5,
        140,
        &["Building Blocks", "Wooden Train", "Board Game", "Puzzle 1000", "Kite"],
        &["Beech", "Cardboard", "Cotton"],
    ),
    Category(
        "Stationery",
        2,
        1,
        60,
        &["Notebook A5", "Fountain Pen", "Desk Organiser", "Washi Tape", "Sketch Pad"],
        &["Paper", "Brass", "Cork"],
    ),
    Category(
        "Café & Tea",
        2,
        4,
        90,
        &["Espresso Beans 1 kg", "Sencha 100 g", "Crème Brûlée Set", "Pour-Over Dripper", "Teapot"],
        &["Porcelain", "Glass", "Bamboo"],
    ),
    Category(
        "Travel",
        2,
        15,
        420,
        &["Carry-On 38 l", "Packing Cubes", "Travel Pillow", "Toiletry Bag", "Money Belt"],
        &["Polycarbonate", "Canvas", "Nylon"],
    ),
];

const BRANDS: [&str; 24] = [
    "Nordheim",
    "Alpenlicht",
    "Kestrel & Co",
    "Vela",
    "Brightwater",
    "Oakridge",
    "Sørland",
    "Müller",
    "Hikari",
    "Terranova",
    "Pinecone",
    "Lumen",
    "Cobalt",
    "Fernway",
    "Aurelia",
    "Marlow",
    "Tidepool",
    "Granit",
    "Élan",
    "Juniper",
    "Foxglove",
    "Northbound",
    "Solstice",
    "Quarry",
];
const ADJECTIVES: [&str; 24] = [
    "Light",
    "Classic",
    "Pro",
    "Everyday",
    "Compact",
    "Heritage",
    "Ultra",
    "Essential",
    "Rugged",
    "Quiet",
    "Swift",
    "Nordic",
    "Foldable",
    "Waterproof",
    "Studio",
    "Junior",
    "Grand",
    "Slim",
    "Urban",
    "Wild",
    "Signature",
    "Eco",
    "Thermal",
    "Mini",
];
const COLOURS: [&str; 12] = [
    "Black",
    "White",
    "Red",
    "Forest Green",
    "Navy",
    "Sand",
    "Slate Grey",
    "Mustard",
    "Coral",
    "Sky Blue",
    "Plum",
    "Natural",
];
const PRAISE: [&str; 8] = [
    "Made to be used every day.",
    "Tested over two winters by people who are hard to please.",
    "Small enough for any bag, and strong enough for the bottom of it.",
    "Every part of it can be replaced.",
    "The one that our own staff buys.",
    "Comes in a box without plastic.",
    "Designed with fewer parts, so that fewer can break.",
    "A present that is not passed on.",
];

/// `SplitMix64`: small, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn of(&mut self, list: &[&'static str]) -> &'static str {
        list.get(self.below(list.len() as u64) as usize).copied().unwrap_or_default()
    }
}

/// The products of a shop.
pub fn shop(products: u64, seed: u64) -> impl Iterator<Item = NewProduct> {
    (1..=products).map(move |number| product(number, products, seed))
}

fn category(number: u64) -> &'static Category {
    let mut place = number % PLAN;
    for category in &CATEGORIES {
        if place < category.1 {
            return category;
        }
        place -= category.1;
    }
    &CATEGORIES[0]
}

fn product(number: u64, products: u64, seed: u64) -> NewProduct {
    let mut rng = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
    let Category(category, _, least, most, things, materials) = category(number);
    let (brand, adjective, thing) = (rng.of(&BRANDS), rng.of(&ADJECTIVES), rng.of(things));
    let (colour, material) = (rng.of(&COLOURS), rng.of(materials));
    let name = format!("{brand} {adjective} {thing}");
    // Cheap ones are more frequent, and shops like nines.
    let share = rng.below(1000).min(rng.below(1000)) as i64;
    let whole = least + (most - least) * share / 1000;
    let cents = [99, 90, 95, 0, 49].get(rng.below(5) as usize).copied().unwrap_or(0);
    let images = 1 + rng.below(4);
    let mut attributes = vec![
        Attribute { name: String::from("Colour"), value: colour.to_owned() },
        Attribute { name: String::from("Material"), value: (*material).to_owned() },
        Attribute { name: String::from("Weight"), value: format!("{} g", 20 + 10 * rng.below(400)) },
    ];
    if rng.below(3) == 0 {
        attributes.push(Attribute { name: String::from("Warranty"), value: format!("{} years", 2 + rng.below(4)) });
    }
    let description = format!(
        "The {adjective} {thing} by {brand}, in {} {}. {} {}",
        colour.to_lowercase(),
        material.to_lowercase(),
        rng.of(&PRAISE[..4]),
        rng.of(&PRAISE[4..]),
    );
    let stock = if rng.below(12) == 0 { 0 } else { rng.below(400) as u32 };
    let status = if rng.below(50) == 0 { Status::Inactive } else { Status::Active };
    let created_at = OPENED + (rng.below(1000 * DAY as u64) as i64);
    // Others of the same place in the plan.
    let peers = products / PLAN;
    let mut related: Vec<String> = Vec::new();
    for _ in 0..3 + rng.below(6) {
        let other = number % PLAN + PLAN * rng.below(peers);
        if other != number && (1..=products).contains(&other) && !related.contains(&other.to_string()) {
            related.push(other.to_string());
        }
    }
    NewProduct {
        id: number.to_string(),
        images: (1..=images)
            .map(|n| Image { url: format!("/img/{number}-{n}.webp"), alt: format!("{name}, picture {n}") })
            .collect(),
        name,
        description,
        category: Some((*category).to_owned()),
        brand: Some(brand.to_owned()),
        price: super::model::shown(Decimal::new(whole * 100 + cents, 2)),
        currency: String::from("EUR"),
        stock,
        status,
        attributes,
        related,
        created_at: Some(created_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(products: u64, seed: u64) -> Vec<u8> {
        shop(products, seed).flat_map(|product| serde_json::to_vec(&product).unwrap()).collect()
    }

    #[test]
    fn the_same_seed_is_the_same_shop() {
        assert_eq!(CATEGORIES.iter().map(|category| category.1).sum::<u64>(), PLAN);
        assert_eq!(bytes(500, 7), bytes(500, 7));
        assert_ne!(bytes(500, 7), bytes(500, 8));
    }

    #[test]
    fn every_product_is_one_that_would_be_taken() {
        let all: Vec<NewProduct> = shop(2000, SEED).collect();
        for product in &all {
            let json = serde_json::to_value(product).unwrap();
            assert_eq!(&NewProduct::read(&json).unwrap(), product);
            for other in &product.related {
                let other = &all[other.parse::<usize>().unwrap() - 1];
                assert_eq!(other.category, product.category);
            }
        }
        assert!(all.iter().filter(|p| p.related.len() >= 3).count() > 1500);
        assert!(shop(3, 1).all(|product| product.related.is_empty()));
    }
}
