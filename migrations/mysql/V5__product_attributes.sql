CREATE TABLE IF NOT EXISTS product_attributes (
    product_id VARCHAR(64) NOT NULL,
    position BIGINT NOT NULL,
    name VARCHAR(64) NOT NULL,
    value VARCHAR(1024) NOT NULL,
    PRIMARY KEY (product_id, position),
    FOREIGN KEY (product_id) REFERENCES products (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
