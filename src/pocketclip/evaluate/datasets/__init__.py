"""Evaluation sets in every form that is read: folders by class, tables, webdatasets."""
