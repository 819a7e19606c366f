-- The catalogue in PostgreSQL. Times are Unix milliseconds. Ids and what is sorted by compare byte by byte, as in the
-- other databases. What is looked for is in `search_words`, as words of plain letters (see catalog/words.rs).

CREATE TABLE categories (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE brands (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE products (
    id TEXT COLLATE "C" PRIMARY KEY,
    name TEXT NOT NULL,
    name_key TEXT COLLATE "C" NOT NULL,
    description TEXT NOT NULL,
    category_id BIGINT REFERENCES categories (id),
    brand_id BIGINT REFERENCES brands (id),
    price NUMERIC(14, 4) NOT NULL,
    currency TEXT NOT NULL,
    stock BIGINT NOT NULL,
    status TEXT NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name_words TEXT NOT NULL,
    search_words TEXT NOT NULL,
    search TSVECTOR GENERATED ALWAYS AS (to_tsvector('simple', search_words)) STORED
);

CREATE INDEX products_search ON products USING GIN (search);
CREATE INDEX products_name ON products (name_key, id);
CREATE INDEX products_price ON products (price, id);
CREATE INDEX products_created ON products (created_at, id);
CREATE INDEX products_category ON products (category_id);
CREATE INDEX products_brand ON products (brand_id);

CREATE TABLE product_images (
    product_id TEXT COLLATE "C" NOT NULL REFERENCES products (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    url TEXT NOT NULL,
    alt TEXT NOT NULL,
    PRIMARY KEY (product_id, position)
);

CREATE TABLE product_attributes (
    product_id TEXT COLLATE "C" NOT NULL REFERENCES products (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (product_id, position)
);

-- What is related may come later, or be gone: readers join it with what is there.
CREATE TABLE related_products (
    product_id TEXT COLLATE "C" NOT NULL REFERENCES products (id) ON DELETE CASCADE,
    position BIGINT NOT NULL,
    related_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (product_id, position)
);
-- Who shows a product as related is asked when it changes.
CREATE INDEX related_products_related ON related_products (related_id);
