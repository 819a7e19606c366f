-- The catalogue in SQLite. It has no exact decimals: a price is an integer of ten-thousandths.
-- Times are Unix milliseconds. What is looked for is in `search_words`, as words of plain letters (see catalog/words.rs).

CREATE TABLE categories (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE brands (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE products (
    num INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    description TEXT NOT NULL,
    category_id INTEGER REFERENCES categories (id),
    brand_id INTEGER REFERENCES brands (id),
    price INTEGER NOT NULL,
    currency TEXT NOT NULL,
    stock INTEGER NOT NULL,
    status TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    name_words TEXT NOT NULL,
    search_words TEXT NOT NULL
) STRICT;

CREATE INDEX products_name ON products (name_key, id);
CREATE INDEX products_price ON products (price, id);
CREATE INDEX products_created ON products (created_at, id);
CREATE INDEX products_category ON products (category_id);
CREATE INDEX products_brand ON products (brand_id);

CREATE TABLE product_images (
    product_id TEXT NOT NULL REFERENCES products (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    url TEXT NOT NULL,
    alt TEXT NOT NULL,
    PRIMARY KEY (product_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE product_attributes (
    product_id TEXT NOT NULL REFERENCES products (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (product_id, position)
) STRICT, WITHOUT ROWID;

-- What is related may come later, or be gone: readers join it with what is there.
CREATE TABLE related_products (
    product_id TEXT NOT NULL REFERENCES products (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    related_id TEXT NOT NULL,
    PRIMARY KEY (product_id, position)
) STRICT, WITHOUT ROWID;
-- Who shows a product as related is asked when it changes.
CREATE INDEX related_products_related ON related_products (related_id);

CREATE VIRTUAL TABLE product_search USING fts5 (
    search_words, content = 'products', content_rowid = 'num', tokenize = 'unicode61 remove_diacritics 0'
);

CREATE TRIGGER products_inserted AFTER INSERT ON products BEGIN
    INSERT INTO product_search (rowid, search_words) VALUES (new.num, new.search_words);
END;

CREATE TRIGGER products_deleted AFTER DELETE ON products BEGIN
    INSERT INTO product_search (product_search, rowid, search_words) VALUES ('delete', old.num, old.search_words);
END;

CREATE TRIGGER products_updated AFTER UPDATE OF search_words ON products BEGIN
    INSERT INTO product_search (product_search, rowid, search_words) VALUES ('delete', old.num, old.search_words);
    INSERT INTO product_search (rowid, search_words) VALUES (new.num, new.search_words);
END;
