"""Reads a topic to its end with a client that is not ours, and prints one JSON object a record.

  read.py confluent-kafka|kafka-python BROKER TOPIC [read_committed|read_uncommitted]
"""

import json
import sys
import time

client, broker, topic = sys.argv[1:4]
isolation = sys.argv[4] if len(sys.argv) > 4 else "read_committed"
deadline = time.monotonic() + 45


def show(partition, offset, timestamp, key, value, headers):
    text = lambda raw: None if raw is None else raw.decode()
    record = {
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
        "key": text(key),
        "value": text(value),
        "headers": {name: text(raw) for name, raw in headers or []},
    }
    print(json.dumps(record))


def check():
    if time.monotonic() > deadline:
        sys.exit("the end of the topic was not reached in time")


if client == "confluent-kafka":
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer({
        "bootstrap.servers": broker,
        "group.id": "read",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 50,
        "isolation.level": isolation,
    })
    partitions = list(consumer.list_topics(topic, 10).topics[topic].partitions)
    # read_committed ends before a transaction that is open; wait for it, to see all that there is.
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    left = set(partitions)
    while left:
        check()
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error():
            if message.error().code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
            continue
        show(message.partition(), message.offset(), message.timestamp()[1], message.key(), message.value(), message.headers())
    consumer.close()
else:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=broker, isolation_level=isolation, enable_auto_commit=False, auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    partitions = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        check()
        for records in consumer.poll(timeout_ms=200).values():
            for r in records:
                show(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
    consumer.close()
