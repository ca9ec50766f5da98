"""What several tests share: tiny models, made run folders, a stand-in hub, written-again references."""
