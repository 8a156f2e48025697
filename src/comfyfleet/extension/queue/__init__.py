"""The shared queue: prompts that anybody queues go to the next free device."""
