"""Vector environments that step single environments in this process or in worker processes."""
